"""Chunks that are on their way from a disk or a peer: how long they are waited for, and how often the node is asked."""

from __future__ import annotations

import pytest
from connector_fakes import FakeNode
from kvcommons_connector.identity import RequestIdentity, TextHints
from kvcommons_connector.scheduler import SchedulerCore
from kvcommons_connector.stats import Counters
from kvcommons_connector.tracking import Geometry, Tracked

TOKENS = list(range(1024))
FETCH_MS_MAX = 500


class Everything(set[bytes]):
    """Every key there is."""

    def __contains__(self, key: object) -> bool:
        return True


class Waiting:
    """A scheduler's side with a clock, and a node that has everything on its disk."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.node = FakeNode()
        self.node.pending = Everything()
        self.core = SchedulerCore(
            Geometry(256, 128, bytes(32), asynchronous=False),
            self.node,
            Counters(),
            lambda: self.now_ms,
            load=True,
            store=True,
            lease_ms_max=10_000,
            fetch_ms_max=FETCH_MS_MAX,
        )

    def add(self, name: str, tokens: list[int]) -> None:
        self.core.add(Tracked(name, len(tokens), RequestIdentity(), TextHints()), tokens)


@pytest.fixture(name="engine")
def _engine() -> Waiting:
    return Waiting()


def test_chunks_on_their_way_are_waited_for_within_a_bound(engine: Waiting) -> None:
    """While disk or a peer brings a chunk the answer is None; after the bound the request goes ahead without it, and does not wait again."""
    engine.add("a", TOKENS)
    assert engine.core.matched("a", TOKENS, 0) == (None, False)
    engine.now_ms += FETCH_MS_MAX + 1
    assert engine.core.matched("a", TOKENS, 0) == (0, False)
    engine.now_ms += FETCH_MS_MAX + 1
    assert engine.core.matched("a", TOKENS, 0) == (0, False)
    engine.node.present = Everything()
    engine.add("b", TOKENS)
    assert engine.core.matched("b", TOKENS, 0) == (896, False)


def test_an_engine_that_waits_asks_now_and_then(engine: Waiting) -> None:
    """While chunks are on their way the node is not asked at every step, and soon after they are there they are used."""
    engine.add("a", TOKENS)
    for _ in range(10):
        assert engine.core.matched("a", TOKENS, 0) == (None, False)
        engine.now_ms += 1
    assert engine.node.lookups == 2
    engine.node.present = Everything()
    engine.now_ms += 5
    assert engine.core.matched("a", TOKENS, 0) == (896, False)
    assert engine.node.lookups == 3


def test_a_node_with_a_disk_is_told_of_a_request_when_it_arrives(engine: Waiting) -> None:
    """Its lookup has chunks brought in before the engine has room; it holds no lease, and a node of memory alone is not asked."""
    engine.add("a", TOKENS)
    assert engine.node.lookups == 0
    engine.node.has_tiers = True
    engine.add("b", TOKENS)
    assert (engine.node.lookups, engine.node.leases) == (1, {})
    engine.add("short", TOKENS[:255])
    assert engine.node.lookups == 1
