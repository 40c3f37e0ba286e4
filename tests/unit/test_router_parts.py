"""The router's small parts, each by itself: cells, metrics, load, health, rates, the local index, feedback, settings."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvcommons_core.errors import ConfigurationError, UnknownSettingError
from kvcommons_core.index import Holder, Member, MemberInfo, MemberKind, Tier
from kvcommons_router.cells import Cells
from kvcommons_router.chains import Places
from kvcommons_router.exposition import render
from kvcommons_router.feedback import parse_report
from kvcommons_router.fleet import Fleet
from kvcommons_router.health import Active, Health
from kvcommons_router.index import Depth
from kvcommons_router.index_memory import depths_of_masks
from kvcommons_router.load import InstanceLoad, Load, Utilisation
from kvcommons_router.metrics import Layout, Names, Recorder
from kvcommons_router.picker import Candidate, Prefill
from kvcommons_router.rates import PrefillLearner, TokenRatio
from kvcommons_router.roster import Roster, Wanted
from kvcommons_router.settings import HealthSettings, InstanceSettings, RouterSection, load, parse_instance

LAYOUT = Layout(1, 2)
NAMES = Names(((0, "m"),), ((0, "a"), (1, "b")))


def fleet_of(instances: Sequence[InstanceSettings]) -> Fleet:
    """The fleet of a router with these instances."""
    roster = Roster(len(instances))
    roster.advance([Wanted(one) for one in instances])
    fleet = Fleet(RouterSection(instances=tuple(instances)))
    fleet.follow(roster.entries.values(), roster.models, ())
    return fleet


def test_cells_of_all_rows_are_summed() -> None:
    """A worker writes its own row; whoever asks sees the sum and the largest."""
    cells = Cells(3, 4)
    for row in range(3):
        cells.row(row)[2] = 10 + row
    assert (cells.total(2), cells.largest(2), cells.smallest(2, 3)) == (33, 12, 10)
    assert (cells.totals(0, 4), cells.totals(2, 1)) == ([0, 0, 33, 0], [33])
    with pytest.raises(IndexError):
        cells.row(3)


def test_metrics_of_all_workers_are_one_text() -> None:
    """Counters add up over workers, and a histogram's buckets are cumulative."""
    cells = Cells(2, LAYOUT.columns)
    for row in range(2):
        recorder = Recorder(LAYOUT, cells.row(row))
        recorder.count(LAYOUT.retries, 2)
        recorder.observe_seconds(LAYOUT.request_seconds, 0, 0.02)
        recorder.observe_lookup(0.0002)
        recorder.refused("slow")
    text = render(LAYOUT, cells, NAMES, {0: True, 1: False}, {"ready": 2}).decode()
    assert "kvcommons_router_retries_total 4" in text
    assert 'kvcommons_router_request_seconds_bucket{model="m",le="0.01"} 0' in text
    assert 'kvcommons_router_request_seconds_bucket{model="m",le="0.025"} 2' in text
    assert 'kvcommons_router_request_seconds_bucket{model="m",le="+Inf"} 2' in text
    assert 'kvcommons_router_request_seconds_sum{model="m"} 0.04' in text
    assert 'kvcommons_router_refusals_total{limit="slow"} 2' in text
    assert 'kvcommons_router_instance_up{replica="b"} 0' in text
    assert 'kvcommons_router_instances{state="ready"} 2' in text
    assert "_active_state" not in text


def test_a_dead_workers_gauges_can_be_cleared() -> None:
    """Gauges and counters are told apart, so that a crash leaves no load behind and loses no count."""
    gauges = set(LAYOUT.gauge_columns())
    assert {LAYOUT.connections, LAYOUT.waiting_tokens, LAYOUT.decoding + 1, LAYOUT.workers} <= gauges
    assert not {LAYOUT.requests, LAYOUT.retries, LAYOUT.prefill_work} & gauges


def test_load_is_what_this_worker_sent() -> None:
    """Counts follow each request to its end, in the candidates and in the cells that metrics are read from."""
    cells = Cells(2, LAYOUT.columns)
    candidates = [Candidate(b"a"), Candidate(b"b")]
    load = Load(LAYOUT, cells.row(0), [])
    load.follow(dict(enumerate(candidates)))
    load.dispatched(0, 100, 0.5, 1.0)
    load.dispatched(0, 50, 0.5, 1.5)
    load.dispatched(1, 7, 0.5, 1.0)
    load.prefilled(1, 7, 2.0)
    assert load.own() == [(150, 0, 2), (0, 1, 1)]
    assert [(c.waiting_tokens, c.decoding, c.requests, c.head_at) for c in candidates] == [
        (150, 0, 2, 1.0),
        (0, 1, 1, 2.0),
    ]
    load.prefilled(0, 100, 2.0)
    load.finished(0, 100, was_decoding=True)
    load.finished(0, 50, was_decoding=False)
    load.finished(1, 7, was_decoding=True)
    assert load.own() == [(0, 0, 0), (0, 0, 0)]
    assert [(c.waiting_tokens, c.decoding, c.requests) for c in candidates] == [(0, 0, 0), (0, 0, 0)]
    assert cells.total(LAYOUT.prefill_work) == 1_500_000


def test_load_reads_any_source() -> None:
    """Other routers' load comes through the same door as the siblings'."""

    class Elsewhere:
        def read(self, count: int) -> list[InstanceLoad]:
            return [InstanceLoad(5, 6, 7, 3.0), InstanceLoad(0, 0, 0)]

    candidates = [Candidate(b"a"), Candidate(b"b")]
    found = Load(LAYOUT, Cells(1, LAYOUT.columns).row(0), [Elsewhere(), Elsewhere()])
    found.follow(dict(enumerate(candidates)))
    found.refresh()
    found.refresh()
    assert (candidates[0].waiting_tokens, candidates[0].decoding, candidates[0].requests) == (10, 12, 14)
    assert candidates[0].head_at == 3.0


def test_utilisation_is_the_last_minutes_share() -> None:
    """Work over time and instances; what is older than a minute counts no more."""
    found = Utilisation()
    assert found.sample(0.0, 2, now=1000.0) == 0.0
    for second in range(1, 61):
        found.sample(second * 1.0, 2, now=1000.0 + second)
    assert found.rho == pytest.approx(0.5)
    for second in range(61, 131):
        found.sample(60.0, 2, now=1000.0 + second)
    assert found.rho == 0.0


def test_utilisation_begins_carefully() -> None:
    """A burst in the first half second is no busy fleet."""
    found = Utilisation()
    found.sample(0.0, 1, now=0.0)
    assert found.sample(0.5, 1, now=0.5) == pytest.approx(0.25)


def health(rows: int = 2) -> tuple[list[Health], Cells]:
    """The judgement of several workers; the first one checks."""
    cells = Cells(rows, LAYOUT.columns)
    settings = HealthSettings(failures_max=2, errors_max=3, eject_seconds=1.0, eject_seconds_max=4.0)
    found = [Health(LAYOUT, cells, row, 0, settings) for row in range(rows)]
    for one in found:
        one.follow([0, 1])
    return found, cells


def test_all_workers_believe_the_one_that_checks() -> None:
    """A first failed check is enough at the start; later it takes two."""
    (checker, other), _ = health()
    assert checker.checked(0, ok=True)
    assert checker.checked(1, ok=False)
    assert other.refresh(0)
    assert [other.active[0], other.active[1]] == [Active.UP, Active.DOWN]
    assert not checker.checked(0, ok=False)
    assert other.usable(0, 0)
    assert checker.checked(0, ok=False)
    other.refresh(0)
    assert not other.usable(0, 0)


def test_errors_leave_an_instance_out_for_longer_each_time() -> None:
    """Three errors in a row: out for 1 s for every worker, then 2, then 4 and no longer; a success forgives."""
    (one, other), _ = health()
    now = 0
    for seconds in (1, 2, 4, 4):
        while not one.failed(0, now):
            pass
        other.refresh(now)
        assert not other.usable(0, now + seconds * 1000 - 1)
        assert other.usable(0, now + seconds * 1000)
        now += seconds * 1000
    one.succeeded(0)
    assert not one.failed(0, now)
    assert one.usable(0, now)


def test_a_group_without_anybody_usable_tries_everybody() -> None:
    """When every check fails the checks may be wrong: requests are tried rather than refused."""
    instances = [InstanceSettings(name=name, url="http://h:1", model="m") for name in "ab"]
    fleet = fleet_of(instances)
    (checker, *_), _ = health(1)
    group = fleet.groups["m"]
    checker.checked(0, ok=False)
    fleet.refresh(checker, 0)
    assert [one.name for one in group.usable] == ["b"]
    checker.checked(1, ok=False)
    fleet.refresh(checker, 0)
    assert [one.name for one in group.usable] == ["a", "b"]


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0.0, 0.5), st.floats(1e-5, 1e-2))
def test_prefilling_is_learnt_from_times_to_first_token(base: float, token: float) -> None:
    """The line through the samples is found, whatever was assumed before."""
    prefill = Prefill()
    learner = PrefillLearner(prefill)
    for number in range(60):
        uncached = 100 + 997 * number % 4000
        learner.add(uncached, base + uncached * token)
    assert prefill.token_seconds == pytest.approx(token, rel=0.01)
    assert prefill.base_seconds == pytest.approx(base, rel=0.05, abs=0.001)


def test_a_replica_that_was_judged_too_quick_is_found_out() -> None:
    """Behind others a request takes as long as they and it: where that is far more than expected, the estimate rises."""
    prefill = Prefill(0.0, 0.00001)
    learner = PrefillLearner(prefill)
    for _ in range(60):
        learner.add(1000, 2.0, 9000)
    assert 0.0001 <= prefill.token_seconds <= 0.0002
    assert prefill.base_seconds == 0.0


def test_what_waits_behind_others_moves_no_good_estimate() -> None:
    """How much of the others was still to be done is not known exactly, so only what is alone draws the line."""
    prefill = Prefill()
    learner = PrefillLearner(prefill)
    for number in range(60):
        uncached = 100 + 997 * number % 4000
        learner.add(uncached, 0.05 + uncached * 0.0001)
        learner.add(uncached, 0.05 + uncached * 0.00015, 700)
    assert prefill.token_seconds == pytest.approx(0.0001, rel=0.01)
    assert prefill.base_seconds == pytest.approx(0.05, rel=0.05)


def test_a_replica_that_is_busy_from_the_first_moment_on_is_learnt_roughly() -> None:
    """Where nothing was ever alone there, what waited together makes a first line, so that its queue can be told."""
    prefill = Prefill(known=False)
    learner = PrefillLearner(prefill)
    for _ in range(3):
        learner.add(1000, 1.0, 9000)
    assert not prefill.known
    learner.add(1000, 1.0, 9000)
    assert prefill.known
    assert prefill.token_seconds == pytest.approx(0.0001)


def test_tokens_are_never_free() -> None:
    """Samples that say that longer prompts are quicker are noise: a queue of any length would seem to be short."""
    prefill = Prefill()
    learner = PrefillLearner(prefill)
    for number in range(20):
        learner.add(1000 * (1 + number % 5), 1.0 - 0.1 * (number % 5))
    assert prefill.token_seconds > 1e-5


def test_equal_prompts_teach_their_length_alone() -> None:
    """With one length only there is no line: the fixed part is kept and the prediction at that length is right."""
    prefill = Prefill(base_seconds=0.02, token_seconds=0.0002)
    learner = PrefillLearner(prefill)
    for _ in range(20):
        learner.add(1000, 1.02)
    assert prefill.seconds(1000, 1000) == pytest.approx(1.02)
    assert prefill.base_seconds == pytest.approx(0.02)


def test_bytes_to_a_token_are_learnt() -> None:
    """Counts of engines move the ratio; a short prompt, mostly template, does not."""
    ratio = TokenRatio()
    ratio.add(40, 30)
    assert ratio.bytes_per_token == 4.0
    for _ in range(200):
        ratio.add(10_000, 5_000)
    assert ratio.bytes_per_token == pytest.approx(2.0, rel=0.01)
    assert ratio.tokens(0) == 1


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 15), max_size=12))
def test_depths_are_the_unbroken_beginnings(masks: list[int]) -> None:
    """An instance's depth is the number of leading keys whose holders include it."""
    found = depths_of_masks([bytes([at]) for at in range(len(masks))], lambda key, default: masks[key[0]])
    for index in range(4):
        depth = 0
        while depth < len(masks) and masks[depth] >> index & 1:
            depth += 1
        assert found.get(index, Depth(0, 0, 0, 0)).engine == depth
        assert (index in found) == (depth > 0)


def member(name: str, slot: int, kind: MemberKind) -> Member:
    """A living member of the index."""
    return Member(slot, 1, 1, "x", 0, MemberInfo(name=name, kind=kind, address="h:1"))


def test_an_instances_depth_joins_its_cache_its_node_and_the_peers() -> None:
    """The engine's own cache, its node's memory and disk, and any other node, in this order; who has no node can't
    fetch from one."""
    instances = [
        InstanceSettings(name=name, url="http://h:1", model="m", node=node)
        for name, node in (("a", "n1"), ("b", "n2"), ("c", ""))
    ]
    places = Places(fleet_of(instances).instances, age_units_max=100)
    members = {
        "engine:a": member("engine:a", 10, MemberKind.ENGINE),
        "engine:c": member("engine:c", 12, MemberKind.ENGINE),
        "engine:other": member("engine:other", 13, MemberKind.ENGINE),
        "n1": member("n1", 1, MemberKind.NODE),
        "n2": member("n2", 2, MemberKind.NODE),
    }
    places.follow(members, 500)

    def held(*holders: tuple[int, Tier]) -> bytes:
        return b"".join(Holder(slot, 1, tier, 0, 499).pack() for slot, tier in holders)

    chain = [
        held((10, Tier.ENGINE), (1, Tier.MEMORY), (12, Tier.ENGINE), (13, Tier.ENGINE)),
        held((10, Tier.ENGINE), (1, Tier.MEMORY), (12, Tier.ENGINE)),
        held((1, Tier.MEMORY), (12, Tier.ENGINE)),
        held((1, Tier.DISK), (12, Tier.ENGINE), (99, Tier.MEMORY)),
        held((1, Tier.DISK), (13, Tier.ENGINE)),
        held((13, Tier.ENGINE)),
    ]
    expected = {0: Depth(2, 3, 5, 5), 1: Depth(0, 0, 0, 5), 2: Depth(4, 4, 4, 4)}
    assert places.depths(chain) == expected
    assert places.depths([chain[0], chain[2], chain[4]], [0, 2, 4]) == {
        0: Depth(1, 3, 5, 5),
        1: Depth(0, 0, 0, 5),
        2: Depth(3, 3, 3, 3),
    }
    assert places.depths([]) == {}
    assert places.depths(chain[1:], [1, 2, 3, 4, 5]) == {}
    assert places.node_slot(1) == 2
    places.follow(members, 700)
    assert places.depths(chain) == {}  # too old
    places.follow(members, 500)
    assert places.depths(chain) == expected
    places.follow({name: one for name, one in members.items() if name != "n1"}, 500)
    assert places.depths(chain) == {0: Depth(2, 2, 2, 2), 2: Depth(4, 4, 4, 4)}
    assert places.depths([b"12345"]) == {}
    assert places.corrupt == 1


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.sets(st.integers(0, 2)), max_size=10))
def test_the_quick_depths_are_the_plain_ones(chain: list[set[int]]) -> None:
    """Whatever the holders along a chain, an instance's depth is its unbroken beginning."""
    instances = [InstanceSettings(name=name, url="http://h:1", model="m") for name in "abc"]
    places = Places(fleet_of(instances).instances, age_units_max=100)
    places.follow({f"engine:{n}": member(f"engine:{n}", at + 1, MemberKind.ENGINE) for at, n in enumerate("abc")}, 0)
    packed = [b"".join(Holder(one + 1, 1, Tier.ENGINE, 0, 0).pack() for one in sorted(held)) for held in chain]
    found = places.depths(packed)
    for index in range(3):
        depth = next((at for at, held in enumerate(chain) if index not in held), len(chain))
        assert found.get(index, Depth(0, 0, 0, 0)) == Depth(depth, depth, depth, depth)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"request_id":"r"}',
        b'{"request_id":1,"prompt_tokens":1,"own_tokens":1,"commons_tokens":1}',
        b'{"request_id":"r","prompt_tokens":true,"own_tokens":1,"commons_tokens":1}',
        b'{"request_id":"r","prompt_tokens":-1,"own_tokens":1,"commons_tokens":1}',
        b'{"request_id":"r","prompt_tokens":1.5,"own_tokens":1,"commons_tokens":1}',
        b'{"request_id":"r","prompt_tokens":99999999999,"own_tokens":1,"commons_tokens":1}',
    ],
)
def test_what_is_no_report_is_none(data: bytes) -> None:
    """The channel is shared: a message that is not as agreed is counted, not believed."""
    assert parse_report(data) is None


def test_an_instance_is_read_from_a_flag() -> None:
    """KEY=VALUE pairs, several models with + between them."""
    found = InstanceSettings.model_validate(
        parse_instance("name=a, url=http://10.0.0.1:8000,model=m,models=lora-1+lora-2,node=n,zone=z,dp_rank=3")
    )
    assert found.names == ("m", "lora-1", "lora-2")
    assert (found.host, found.port, found.node, found.zone, found.dp_rank) == ("10.0.0.1", 8000, "n", "z", 3)
    with pytest.raises(UnknownSettingError, match="known: name"):
        parse_instance("nane=a")
    with pytest.raises(ConfigurationError, match="KEY=VALUE"):
        parse_instance("name")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"KVCOMMONS_ROUTER__POLICI": "cost"}, "router.policy"),
        ({"KVCOMMONS_ROUTER__LIMITS__BODY_BYTES_MX": "1"}, "body_bytes_max"),
        ({"KVCOMMONS_ROUTER__POLICY": "best"}, "roundRobin"),
        ({"KVCOMMONS_ROUTER__LIMITS__BODY_BYTES_MAX": "2GiB"}, "bodies_bytes_max"),
        ({"KVCOMMONS_ROUTER__LISTEN": "nowhere"}, "HOST:PORT"),
        ({"KVCOMMONS_ROUTER__LISTEN": "0.0.0.0:65536"}, "a port is 0"),
        ({"KVCOMMONS_ROUTER__LOG_LEVEL": "loud"}, "give one of debug, info, warning, error"),
        ({"KVCOMMONS_ROUTER__KUBERNETES__NAMESPACE": "n"}, "router.kubernetes.selector.*it is required"),
        ({"KVCOMMONS_ROUTER__KUBERNETES": '{"namespace": "n", "selector": "a=b"}'}, "which model"),
        (
            {"KVCOMMONS_ROUTER__KUBERNETES": '{"namespace":"n","selector":"a=b","model":"m","api":"http://10.0.0.1"}'},
            "without TLS",
        ),
        (
            {"KVCOMMONS_ROUTER__KUBERNETES": '{"namespace":"n","selector":"a=b","model":"m","node_by":"x"}'},
            "give one of nodeName, podName",
        ),
    ],
)
def test_unusable_settings_name_the_setting(environ: dict[str, str], words: str) -> None:
    """The nearest known name, the allowed values, or what two limits have against each other."""
    instances = (parse_instance("name=a,url=http://h:1,model=m"),)
    with pytest.raises(ConfigurationError, match=words):
        load(None, environ, {"instances": instances}, {})


@pytest.mark.parametrize("port", ["65536", "0", "x"])
def test_an_engines_port_is_one_that_exists(port: str) -> None:
    """A port that no machine has is named before anything is sent there."""
    with pytest.raises(ConfigurationError, match=r"router.instances.0.url: .*a port is 1 to 65535"):
        load(None, {}, {"instances": (parse_instance(f"name=a,url=http://h:{port},model=m"),)}, {})


def test_two_instances_of_one_name_are_refused() -> None:
    """Metrics, logs and the index tell instances apart by name."""
    one = parse_instance("name=a,url=http://h:1,model=m")
    with pytest.raises(
        ConfigurationError, match=r"router.instances.1.name: 'a': router.instances.0 has this name already"
    ):
        load(None, {}, {"instances": (one, one)}, {})
