"""Why a chunk was not found: what the node remembers of chunks that are gone, of peers, of texts and of tenants."""

from __future__ import annotations

import json
import random

import pytest
from kvcommons_node.api.models_requests import RequestsQuery
from kvcommons_node.history import History, Sights
from kvcommons_node.reports import Reports, for_routers

KEY = bytes(range(32))
KEY8 = KEY[:8]
OURS, THEIRS = bytes(32), bytes([1]) * 32
TEXT = 0x1234


class World:
    """A clock and how it stands with the peers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sights = Sights(0, frozenset())
        self.history = History(lambda: self.sights, lambda: self.now)

    def why(self, *, text: int | None = None, other_tenant: bool = False) -> str:
        return self.history.why(KEY8, text, OURS, other_tenant).why


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("cause", ["evicted", "cleared"])
def test_a_chunk_that_was_let_go_of_is_told_with_its_time_and_age(world: World, cause: str) -> None:
    """Whether for room or by a call; the last time counts."""
    world.history.gone(KEY, "evicted", 1_000)
    world.now = 110.0
    world.history.gone(KEY, cause, 5_000)
    world.now = 140.0
    assert world.history.why(KEY8, None, OURS, False)[:3] == (cause, 30.0, 5.0)


def test_what_is_unknown_was_never_stored_unless_another_tenant_sent_it(world: World) -> None:
    """The router alone knows what other tenants sent."""
    assert world.why() == "never_stored"
    assert world.why(other_tenant=True) == "other_tenant"


def test_a_text_that_is_cached_for_another_model_is_told_so(world: World) -> None:
    """Its own model's text is no such reason."""
    world.history.committed(OURS, [TEXT])
    assert world.why(text=TEXT) == "never_stored"
    world.history.committed(THEIRS, [TEXT])
    assert world.why(text=TEXT) == "other_fingerprint"
    assert world.why(text=TEXT + 1) == "never_stored"


@pytest.mark.parametrize(
    ("sights", "expected"),
    [
        (Sights(0, frozenset({"one"})), "node_gone"),
        (Sights(0, frozenset({"two"})), "peer_failed"),
        (Sights(1, frozenset()), "peer_slow"),
    ],
)
def test_what_a_peer_had_and_did_not_come_is_the_peers_fault(world: World, sights: Sights, expected: str) -> None:
    """It does not answer, it would have taken too long, or what it said came to nothing; only chunks that it was said to have."""
    world.history.asked([KEY8, b"other999"], {"one": 1})
    world.sights = sights
    verdict = world.history.why(KEY8, None, OURS, False)
    assert (verdict.why, verdict.peers) == (expected, ("one",))
    assert world.history.why(b"other999", None, OURS, False).why == "never_stored"


def test_what_came_from_a_peer_and_was_evicted_later_was_evicted(world: World) -> None:
    """An old question is not the reason of a new miss."""
    world.history.asked([KEY8], {"one": 1})
    world.now += 5
    world.history.gone(KEY, "evicted", 5_000)
    assert world.why() == "evicted"


def test_the_oldest_ends_are_forgotten(world: World) -> None:
    """Nothing here grows without bound."""
    history = History(rows_log2=4)
    history.gone(KEY, "evicted", 0)
    choose = random.Random(2)
    for _ in range(200):
        history.gone(choose.randbytes(32), "evicted", 0)
    assert history.why(KEY8, None, OURS, False).why == "never_stored"


def report(**more: object) -> str:
    tokens = {"prompt_tokens": 1_024, "own_tokens": 0, "commons_tokens": 256, "computed_tokens": 768}
    return json.dumps({"request_id": "r", "reason": "partly_found", **tokens, **more})


def test_neighbours_that_were_missed_for_one_reason_are_one_run(world: World) -> None:
    """Numbered from the prompt's first chunk on."""
    world.history.gone(KEY, "evicted", 60_000)
    reports = Reports(lambda: world.now, world.history)
    reports.hear(report(missed_from=1, missed=[KEY8.hex(), "aa" * 8, f"{'bb' * 8}:{TEXT:016x}"]), OURS)
    (shown,) = reports.page(RequestsQuery()).requests
    assert [(run.first, run.last, run.why, run.lived_seconds) for run in shown.missed] == [
        (1, 1, "evicted", 60.0),
        (2, 3, "never_stored", None),
    ]
    assert shown.missed[0].key == KEY8.hex()


@pytest.mark.parametrize("missed", ["x", [1], ["zz"], [KEY8.hex() + "0"], {"a": 1}])
def test_a_malformed_list_is_left_out_and_the_report_stays(world: World, missed: object) -> None:
    """Engines are not trusted."""
    reports = Reports(lambda: world.now, world.history)
    assert reports.hear(report(missed_from=0, missed=missed), OURS) is not None
    assert reports.page(RequestsQuery()).requests[0].missed == []


def test_routers_hear_nothing_of_keys_and_other_tenants() -> None:
    """What a router has no use for does not go through Redis."""
    told = json.loads(for_routers(report(missed_from=1, missed=["aa" * 8], other_tenant=1)))
    assert told == json.loads(report())
    assert for_routers(report()) == report()
