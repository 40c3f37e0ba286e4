"""The event pump: order, gaps and counting, over a real eventfd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvcommons_node.cluster import Credentials
from kvcommons_node.control import Control
from kvcommons_node.engines import Engines
from kvcommons_node.index_link import Lag, Standing
from kvcommons_node.model_names import ModelNames
from kvcommons_node.pinning import Pinning
from kvcommons_node.pool_view import NoPool
from kvcommons_node.pump import EventPump
from kvcommons_node.size import Sizing
from node_fakes import FakeCore, FakeIndex, FakeStart, committed, feedback, freed, key, moved


class Pumped:
    def __init__(self) -> None:
        self.core, self.index = FakeCore(), FakeIndex()
        control = Control(
            self.core,
            self.index,
            Pinning(self.core, None, 0),
            sizing=Sizing(FakeStart(Path("/x")), lambda: None),
            node_id="n",
            version="0",
            socket_path="/x",
            multi_tenant=False,
            namespace_secret=bytes(32),
            models=ModelNames(),
            pool=NoPool(),
            engines=Engines((), NoPool(), "n"),
            credentials=Credentials(),
        )
        self.metrics = control.node_metrics
        self.feed, self.reports = control.feed, control.reports
        self.pump = EventPump(self.core, self.index, self.metrics, self.reports, self.feed, control.models)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def pumped() -> Iterator[Pumped]:
    made = Pumped()
    yield made
    made.core.stop()


def test_events_are_handed_on_in_order(pumped: Pumped) -> None:
    """A chunk's removal is handed on after its commit, as the core ordered them."""
    pumped.core.emit(committed(1, (7, 8)), committed(2), freed(1))
    assert pumped.pump.drain() == 3
    assert pumped.index.told == [("committed", (key(1), (7, 8))), ("committed", (key(2), ())), ("freed", key(1))]
    assert pumped.metric("kvcommons_node_freed_age_seconds_count") == 1
    assert pumped.metric("kvcommons_node_events_total", kind="committed") == 2


def test_where_a_chunk_is_by_now_is_what_is_told(pumped: Pumped) -> None:
    """What left memory and is on the disk is published as there; it is taken back when no tier has it; back in memory it is left alone."""
    pumped.core.emit(freed(1, tier="disk"), moved(1, ""), moved(2, "disk"), freed(3, tier="memory"), freed(4))
    pumped.pump.drain()
    assert pumped.index.told == [
        ("placed", (key(1), "disk")),
        ("freed", key(1)),
        ("placed", (key(2), "disk")),
        ("freed", key(4)),
    ]


def test_a_gap_begins_an_epoch_before_what_follows_it(pumped: Pumped) -> None:
    """Lost events void everything published before, and what came after the loss belongs to the new epoch."""
    pumped.core.emit(committed(1), gap=True)
    pumped.pump.drain()
    assert [name for name, _ in pumped.index.told] == ["epoch", "committed"]
    assert pumped.metric("kvcommons_node_event_gaps_total") == 1


@pytest.mark.parametrize(
    "report",
    [
        '{"own_tokens": 512, "commons_tokens": 256, "computed_tokens": 9}',
        "[1]",
        "{",
        '{"own_tokens": "x"}',
        '{"own_tokens": 1' + "0" * 400 + "}",
        '{"a":' + "[" * 2_000 + "]" * 2_000 + "}",
    ],
)
def test_feedback_is_passed_on_whatever_it_holds(pumped: Pumped, report: str) -> None:
    """A report goes on as it is; only a proper one is counted, and a malformed one breaks nothing."""
    pumped.core.emit(feedback(report))
    pumped.pump.drain()
    assert pumped.index.told == [("feedback", report)]
    counted = pumped.metric("kvcommons_node_request_tokens_total", source="own")
    assert counted == (512 if "512" in report else 0)


async def test_the_event_loop_wakes_the_pump(pumped: Pumped) -> None:
    """Nothing polls: an event that the core announces on its descriptor is taken by the running loop."""
    loop = asyncio.get_running_loop()
    pumped.pump.start(loop)
    pumped.core.emit(committed(1))
    async with asyncio.timeout(5):
        await pumped.index.heard.wait()
    pumped.core.emit(committed(2))
    pumped.pump.stop(loop)
    assert len(pumped.index.told) == 2


def test_the_lag_is_that_of_the_oldest_waiting_word() -> None:
    """Lag grows while Redis takes nothing, falls to the age of what still waits, and is nothing when nothing waits."""
    now = [100.0]
    lag = Lag(clock=lambda: now[0])
    for words in (1, 2, 3):
        lag.put(words)
        now[0] += 1.0
    assert lag.seconds(3, waiting=3) == 3.0
    assert lag.seconds(3, waiting=1) == 1.0
    assert lag.seconds(3, waiting=0) == 0.0
    lag.put(4)
    assert lag.seconds(4, waiting=1) == 0.0


def test_how_the_node_stands_with_the_index_is_told_in_words() -> None:
    """Where the index is without its password, since when it is reached or not, and what went wrong last."""
    now = [100.0]
    standing = Standing("redis://user:hunter2@r:6379/0?password=hunter2", lambda: now[0])
    now[0] += 7
    standing.see(False, "Redis at redis://***@r:6379/0: Error 111 connecting to r:6379")
    words = standing.words("as member a")
    assert words == (
        "redis://***@r:6379/0 has not been reached for 7 s (Error 111 connecting to r:6379); trying again every second"
    )
    standing.see(True, "")
    now[0] += 3
    standing.see(True, "")
    assert standing.words("as member a in slot 2, epoch 5") == (
        "connected to redis://***@r:6379/0 for 3 s, as member a in slot 2, epoch 5"
    )
    assert standing.last_error == "Error 111 connecting to r:6379"
