"""The simulation of policies: always the same, honest about what is seen, and figures of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kvcommons_router.picker import Policy

from bench.policy import live, ours, peers, workloads
from bench.policy.__main__ import OURS, Row, compare, front, measure
from bench.policy.world import Holders, Job, Model, Request, Setup, World

SMALL = Setup(replicas=3, blocks=60)


def trace(count: int = 120) -> list[Request]:
    """Six conversations that take turns and grow, faster than three replicas can follow."""
    found = []
    for number in range(count):
        talk, turn = number % 6, number // 6
        found.append(Request(number * 0.06, [talk * 1000 + block for block in range(4 + turn)], 20))
    return found


@pytest.mark.parametrize("name", OURS)
def test_a_run_is_the_same_each_time(name: str) -> None:
    """The same trace and policy give the same times to the last digit."""
    first, again = (World(SMALL, OURS[name]).run(trace()) for _ in range(2))
    assert first.seconds == again.seconds
    assert len(first.seconds) == 120


@pytest.mark.parametrize("name", peers.PEERS)
def test_every_peer_serves_every_request(name: str) -> None:
    """Each formula, with each of its settings, sends all requests to replicas that there are."""
    for settings in peers.PEERS[name].combinations():
        assert len(World(SMALL, peers.peer(name, settings)).run(trace(40)).seconds) == 40


def test_an_idle_replica_takes_as_long_as_the_model_says() -> None:
    """A single cold request: its prefill; the same again: only the base."""
    model = Model()
    requests = [Request(0.0, [1, 2, 3, 4], 1), Request(100.0, [1, 2, 3, 4], 1)]
    outcome = World(SMALL, ours.on_arrival()).run(requests)
    assert outcome.seconds == pytest.approx([model.prefill(0, 4), model.prefill(4, 4)])
    assert (outcome.blocks, outcome.found) == (8, 4)


def test_a_commons_is_fetched_from() -> None:
    """What another replica has computed is fetched instead of computed, and counts as that."""
    setup = Setup(replicas=2, blocks=4, commons=100)
    requests = [Request(float(number), [number % 3 * 10 + block for block in range(4)], 1) for number in range(12)]
    outcome = World(setup, ours.on_arrival(Policy.ROUND_ROBIN)).run(requests)
    assert outcome.fetched == 36
    assert outcome.found == 0


def test_the_index_hears_of_what_was_dropped_only_later() -> None:
    """Until then a router believes that a replica holds what it no longer does: loads and caches are seen with their delay."""
    setup = Setup(replicas=2, blocks=4, heard_seconds=5.0)
    world = World(setup, ours.on_arrival(Policy.PREFIX_HASH))
    believed = []
    router = world.routers[0]
    look_up = router.look_up

    def spy(job: Job) -> None:
        look_up(job)
        believed.append(max(world.index.depths([1, 2, 3, 4])))

    router.look_up = spy  # type: ignore[method-assign]  # sees what the index says at each arrival
    far = [Request(at, [block + round(at * 100) for block in (5, 6, 7, 8)], 1) for at in (1.0, 2.0, 3.0, 20.0)]
    world.run([Request(0.0, [1, 2, 3, 4], 1), *far])
    assert believed[1] == 4
    assert believed[-1] == 0


def test_watched_jobs_are_stale_when_somebody_comes_to_hold_their_blocks() -> None:
    """A request that waits is looked up again when its blocks have come or gone, and not for others'."""
    world = World(SMALL, ours.on_arrival())
    holders: Holders = world.index
    router = world.routers[0]
    job = Job(Request(0.0, [1, 2, 3], 1), router)
    holders.watch(job)
    holders.add(0, [7, 8])
    assert not holders.stale
    holders.add(1, [1, 2])
    assert list(holders.stale) == [job]
    assert holders.depths([1, 2, 3]) == [0, 2, 0]
    holders.unwatch(job)
    assert not holders.stale


def test_late_binding_is_ahead_of_every_peer_in_overload() -> None:
    """On a small burst of other shape than the traces the constants were found with, the default's mean is the best."""
    requests = workloads.make("bursts", 11, 90.0)
    setup = Setup(replicas=3, blocks=400)
    mine = World(setup, ours.late()).run(requests).mean_ms
    others = [
        World(setup, peers.peer(name, peer.combinations()[0])).run(requests).mean_ms
        for name, peer in peers.PEERS.items()
    ]
    assert mine < min(others)


def test_what_is_learnt_of_rates_in_overload_keeps_replicas_balanced() -> None:
    """A replica whose prefill is learnt wrongly would draw everything: sent at once, `cost` is well ahead of a plain hash."""
    requests = workloads.make("bursts", 12, 120.0)
    setup = Setup(replicas=3, blocks=400)
    scored, hashed = (
        World(setup, ours.on_arrival(policy)).run(requests) for policy in (Policy.COST, Policy.PREFIX_HASH)
    )
    assert scored.mean_ms < 0.8 * hashed.mean_ms


@pytest.mark.parametrize("routers", [2, 4])
def test_several_routers_serve_everything_once(routers: int) -> None:
    """Each has a queue of its own and hears of the others' load; no request is lost or sent twice."""
    outcome = World(Setup(replicas=3, blocks=60, routers=routers), ours.late()).run(trace())
    assert len(outcome.seconds) == 120


@pytest.mark.parametrize("kind", workloads.KINDS)
def test_a_workload_is_made_by_its_seed(kind: str) -> None:
    """The same kind and seed give the same requests, in the order of time; another seed gives others."""
    made = workloads.make(kind, 1, 20.0)
    assert made == workloads.make(kind, 1, 20.0)
    assert made != workloads.make(kind, 2, 20.0)
    assert made == sorted(made, key=lambda request: request.at)


def test_traces_are_read_with_care(tmp_path: Path) -> None:
    """Equal timestamps are spread until the next one; what is no request is an error that names file, line and remedy."""
    path = tmp_path / "trace.jsonl"
    lines = [{"timestamp": at, "hash_ids": [1], "output_length": 3} for at in (0, 0, 4000)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    assert [request.at for request in workloads.read(path, 4.0)] == [0.0, 0.5, 1.0]
    path.write_text('{"timestamp": 0}')
    with pytest.raises(ValueError, match=r"trace\.jsonl:1: .*hash_ids"):
        workloads.read(path, 1.0)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    """A run that another one is better than in mean and p99 is not on it."""
    rows = [
        Row(name, False, mean, 0.0, 0.0, p99, 0.0, 0.0, 0.0)
        for name, mean, p99 in (("a", 1, 9), ("b", 2, 5), ("c", 3, 6))
    ]
    assert [row.name for row in front(rows)] == ["a", "b"]


def test_a_comparison_reports_the_default_and_the_best_of_the_peers(capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are the default's and, each for itself, the best mean and p99 that any peer reached."""
    requests = trace(60)
    found = compare("small", SMALL, requests, quick=True)
    assert set(found) == {"mean_ms", "p99_ms", "best_peer_mean_ms", "best_peer_p99_ms"}
    assert found["mean_ms"] == measure("", SMALL, requests, ours.late()).mean_ms
    assert "front of mean against p99" in capsys.readouterr().out


def test_the_live_engines_prefill_as_the_simulated_ones() -> None:
    """An idle engine takes the model's time for what it does not hold, and holds the least recently used no longer."""
    model = Model()
    engine = live.Engine(model)
    first = [f"{number:07x}" for number in range(10)]
    assert engine._prefill(first) == model.prefill(10, 10)
    assert engine._prefill([*first, "new"]) == model.prefill(1, 11)
    assert engine._prefill([f"{number:07x}" for number in range(1000, 1000 + live.BLOCKS)]) == model.prefill(
        live.BLOCKS, live.BLOCKS
    )
    assert engine._prefill(first) == model.prefill(10, 10)
    assert len(live.text_of(17)) == live.BLOCK_BYTES
