"""What a traced request's parts took in the engine, as the router hears it."""

from __future__ import annotations

from connector_fakes import FakeNode
from kvcommons_connector.identity import RequestIdentity, TextHints, parse_hints
from kvcommons_connector.scheduler import SchedulerCore
from kvcommons_connector.stats import Counters
from kvcommons_connector.tracking import Geometry, ScheduledRequest, Tracked

CHUNK, BLOCK = 256, 128
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"


class Clock:
    """Milliseconds, moved by hand."""

    def __init__(self) -> None:
        self.ms = 1000.0

    def __call__(self) -> float:
        return self.ms


def run(node: FakeNode, clock: Clock, hints: TextHints, *, asynchronous: bool) -> dict[str, int]:
    """A request that waits 7 ms for its chunks to come, 3 ms for its load, and 2 ms for its store; how long each part took, in ms."""
    core = SchedulerCore(
        Geometry(CHUNK, BLOCK, bytes(32), asynchronous),
        node,
        Counters(),
        clock,
        load=True,
        store=True,
        lease_ms_max=10_000,
        fetch_ms_max=500,
    )
    tokens = list(range(1000))
    first = Tracked("first", 1000, RequestIdentity(), TextHints())
    core.add(first)
    core.matched("first", tokens, 0)
    core.allocated("first", list(range(8)), 0)
    keys = core.step([ScheduledRequest("first", tokens, 0, 600, list(range(8)), True)], ()).stores[0].keys
    chunks = [keys[at : at + 32] for at in range(0, len(keys), 32)]
    node.present, node.pending = {chunks[0]}, {chunks[1]}
    core.add(Tracked("r", 1000, RequestIdentity(), hints))
    assert core.matched("r", tokens, 0) == (None, False)
    clock.ms += 7
    node.present, node.pending = set(chunks), set()
    loaded, _ = core.matched("r", tokens, 0)
    assert loaded == 2 * CHUNK
    core.allocated("r", list(range(20, 28)), loaded)
    item = ScheduledRequest("r", tokens, loaded, 300, list(range(20, 28)), True)
    if asynchronous:
        clock.ms += 3
        plan = core.step([item], ())
    else:
        plan = core.step([item], ())
        clock.ms += 3
        core.step([], ())
    clock.ms += 2
    core.stores_done({plan.stores[0].job: 1})
    clock.ms += 100
    core.finish("r", 1000)
    return {part: took // 1000 for part, _, took in node.feedbacks[-1].get("parts", ())}


def traced() -> TextHints:
    """What a router says of a request that it traces."""
    return parse_hints({"kvcommons": {"v": 1, "traceparent": TRACEPARENT + "01"}})


def test_a_load_between_steps_lasts_until_its_request_runs() -> None:
    """Then the lookup's, the node's, the load's and the store's times are told with the report."""
    assert run(FakeNode(), Clock(), traced(), asynchronous=True) == {"lookup": 7, "fetch": 7, "load": 3, "store": 2}


def test_a_load_beside_a_step_lasts_until_the_next_one() -> None:
    """Nobody says sooner that it is done."""
    assert run(FakeNode(), Clock(), traced(), asynchronous=False) == {"lookup": 7, "fetch": 7, "load": 3, "store": 5}


def test_a_request_that_is_not_traced_is_not_timed() -> None:
    """Neither one without a trace, nor one whose trace is not sampled or is none."""
    for parent in (None, TRACEPARENT + "00", "x", 7):
        hints = parse_hints({"kvcommons": {"v": 1, "traceparent": parent}})
        assert not hints.traced
        assert run(FakeNode(), Clock(), hints, asynchronous=True) == {}
