"""A tenant's minute: requests and tokens, what others have let pass, and what a refusal says."""

from pathlib import Path

import orjson
import pytest
from kvcommons_router.auth import KeysError, read_keys
from kvcommons_router.cells import Cells
from kvcommons_router.errors import Refusal
from kvcommons_router.metrics import LIMITS, Layout, Recorder
from kvcommons_router.quotas import Allowance, Quotas

LAYOUT = Layout()


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock of this test."""
    return Clock()


def quotas_of(clock: Clock) -> tuple[Quotas, Cells]:
    """Accounts that begin full, and where refusals are counted."""
    cells = Cells(1, LAYOUT.columns)
    return Quotas(Recorder(LAYOUT, cells.row(0)), clock), cells


def ask(quotas: Quotas, allowance: Allowance, tokens: int = 1, tenant: str = "a") -> int:
    """0 if a request is let pass, else the seconds after which to come again."""
    try:
        quotas.check(tenant, allowance)
    except Refusal as refusal:
        return refusal.retry_after_seconds or -1
    quotas.spend(tenant, tokens)
    return 0


def test_a_minutes_requests_pass_and_then_one_at_a_time(clock: Clock) -> None:
    """Six a minute: six at once, the next one ten seconds later; a refusal costs nothing and is counted."""
    quotas, cells = quotas_of(clock)
    six = Allowance(requests=6)
    assert [ask(quotas, six) for _ in range(8)] == [0] * 6 + [10, 10]
    clock.now += 10.0
    assert [ask(quotas, six) for _ in range(2)] == [0, 10]
    clock.now += 3600.0
    assert [ask(quotas, six) for _ in range(7)] == [0] * 6 + [10]
    assert cells.total(LAYOUT.refusals + LIMITS.index("tenant_minute")) == 4


def test_a_long_prompt_passes_and_is_owed(clock: Clock) -> None:
    """A prompt of more tokens than a minute has is not refused for ever; who sent it waits until that is made up for."""
    quotas, _ = quotas_of(clock)
    allowance = Allowance(tokens=600)
    assert ask(quotas, allowance, 1200) == 0
    assert ask(quotas, allowance, 1) == 60
    clock.now += 59.0
    assert ask(quotas, allowance, 1) == 1
    clock.now += 1.0
    assert ask(quotas, allowance, 1) == 0


def test_tenants_have_minutes_of_their_own(clock: Clock) -> None:
    """One that has used its own does not use another's; a new limit is a new account."""
    quotas, _ = quotas_of(clock)
    one = Allowance(requests=1)
    assert ask(quotas, one) == 0
    assert ask(quotas, one, tenant="b") == 0
    assert ask(quotas, one) == 60
    assert ask(quotas, Allowance(requests=2)) == 0


def test_what_others_let_pass_counts(clock: Clock) -> None:
    """Two workers share a minute: each hears what the other has let pass since it heard of it, once, also after a restart."""
    (one, _), (other, _) = quotas_of(clock), quotas_of(clock)
    ten = Allowance(requests=10)
    one.hear("other", other.told())
    assert [ask(one, ten), ask(other, ten)] == [0, 0]
    for _ in range(4):
        assert ask(other, ten) == 0
    for _ in range(3):
        one.hear("other", other.told())
    assert [ask(one, ten) for _ in range(5)] == [0, 0, 0, 0, 6]
    restarted, _ = quotas_of(clock)
    one.hear("other", restarted.told())
    clock.now += 6.0
    assert ask(one, ten) == 0


def test_only_the_last_minutes_tenants_are_told_of(clock: Clock) -> None:
    """What is told stays small, however many tenants there were."""
    quotas, _ = quotas_of(clock)
    ask(quotas, Allowance(requests=5), 3, tenant="old")
    clock.now += 61.0
    ask(quotas, Allowance(requests=5), 3, tenant="new")
    assert quotas.told() == {"new": (1, 3)}
    for number in range(3000):
        ask(quotas, Allowance(requests=5), 3, tenant=f"t{number}")
    assert len(quotas.told()) == 2000
    assert "t2999" in quotas.told()


def test_a_key_file_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    """A tenant's limits are the same in all of its entries."""
    file = tmp_path / "keys.json"
    entries = [{"tenant": "a", "key": f"key-{number}-of-a", "requests_per_minute": number} for number in (1, 2)]
    file.write_bytes(orjson.dumps({"keys": entries}))
    with pytest.raises(KeysError, match="two limits a minute"):
        read_keys(file, b"secret")
    file.write_bytes(orjson.dumps({"keys": entries[:1]}))
    assert [tenant.allowance for tenant in read_keys(file, b"secret").values()] == [Allowance(requests=1)]
