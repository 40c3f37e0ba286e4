"""Chunks from node to node: who fetches, who lets go, and what stays where something fails. Cores are fakes at their seam."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kvcommons_node.api.models_cluster import NodeResult
from kvcommons_node.api.models_move import FetchRequest
from kvcommons_node.jobs import JobError, Progress
from kvcommons_node.moving_nodes import DEAF_MAX, Fetch, Send, told_layout
from node_fakes import FINGERPRINT, FakeCore, committed, key
from node_moving import KEYS, Clock, core_with
from pydantic import BaseModel

LAYOUT = (256, 7, [((0, 2, 0, 4), 4_096), ((2, 4, 0, 4), 4_096)])


class Other:
    """The node where chunks are to go: answers as its control API would, one state of its job after another."""

    def __init__(self, *states: str, chunks: int = 3) -> None:
        self.asked: list[tuple[str, BaseModel]] = []
        self._states, self._chunks = list(states), chunks
        self.deaf = False
        self.refusal = ""

    async def ask(self, node: str, operation: str, asked: BaseModel) -> NodeResult:
        self.asked.append((operation, asked))
        if self.refusal or (self.deaf and operation == "jobs"):
            return NodeResult(node=node, ok=False, status=0, error=self.refusal or "not reached", seconds=0)
        job: dict[str, Any] = {"job": "ab" * 8, "state": "waiting", "error": "", "result": {}, "progress": {"done": 1}}
        if operation == "jobs":
            job["state"] = self._states.pop(0) if len(self._states) > 1 else self._states[0]
            job["result"] = {"chunks": self._chunks, "were_there": 1} if job["state"] == "done" else {}
            job["error"] = "no room" if job["state"] == "failed" else ""
            return NodeResult(node=node, ok=True, status=200, answer={"jobs": [job]}, seconds=0)
        return NodeResult(node=node, ok=True, status=200, answer={"job": job, "created": True}, seconds=0)


def send(core: FakeCore, other: Other, *, source: str | None = None, keep: bool = False) -> Send:
    clock = Clock()
    return Send(
        core,
        other.ask,
        FINGERPRINT,
        KEYS,
        own="node-a",
        node="node-b",
        source=source,
        keep=keep,
        clock=clock,
        pause=clock.pause,
    )


async def test_what_the_other_node_has_leaves_this_one() -> None:
    """It is asked for the leading chunks that are here, in the layout that they have here; then memory and disk let go of them."""
    core, other, progress = core_with(1, 2, 3), Other("running", "done"), Progress("chunks", 3)
    core.layout = LAYOUT
    core.behind = [(key(number), FINGERPRINT, (), "disk") for number in (1, 2)]
    assert await send(core, other)(progress) == {"chunks": 3, "were_there": 1, "removed_from_source": 3}
    assert (core.chunks, core.behind, progress.done) == ({}, [], 3)
    operation, asked = other.asked[0]
    assert isinstance(asked, FetchRequest)
    assert (operation, asked.node, asked.layout) == ("fetch", "node-a", told_layout(LAYOUT))
    assert asked.keys == [key(number).hex() for number in (1, 2, 3)]
    core.stop()


async def test_a_chunk_behind_a_gap_is_not_sent() -> None:
    """Without what comes before it no engine there could use it: it stays."""
    core, other = core_with(1, 3), Other("done", chunks=1)
    assert (await send(core, other)(Progress("chunks", 3)))["chunks"] == 1
    assert set(core.chunks) == {key(3)}
    core.stop()


async def test_a_named_source_alone_is_emptied() -> None:
    """The disk's chunks go, and memory keeps what it has; a copy takes nothing away."""
    core = core_with(1)
    core.behind = [(key(number), FINGERPRINT, (), "disk") for number in (1, 2)]
    assert (await send(core, Other("done"), source="disk", keep=True)(Progress("chunks", 3)))[
        "removed_from_source"
    ] == 0
    assert (len(core.chunks), len(core.behind)) == (1, 2)
    assert (await send(core, Other("done"), source="disk")(Progress("chunks", 3)))["chunks"] == 2
    assert (len(core.chunks), core.behind) == (1, [])
    core.stop()


@pytest.mark.parametrize(
    ("states", "deaf", "refusal", "words"),
    [
        (("failed",), False, "", "node-b: no room"),
        (("running",), True, "", "node-b: not reached"),
        (("done",), False, "it has no peers", "node-b: it has no peers"),
    ],
)
async def test_what_fails_there_stays_here(states: tuple[str, ...], deaf: bool, refusal: str, words: str) -> None:
    """A job that fails, a node that is gone, a refusal: nothing leaves, and the job says what the other node said."""
    core, other = core_with(1, 2, 3), Other(*states)
    other.deaf, other.refusal = deaf, refusal
    with pytest.raises(JobError, match=words):
        await send(core, other)(Progress("chunks", 3))
    assert len(core.chunks) == 3
    assert len(other.asked) <= DEAF_MAX + 1
    core.stop()


async def test_a_cancelled_move_ends_the_other_node_s_job() -> None:
    """What was being fetched there is not fetched to its end, and nothing leaves."""
    core, other = core_with(1, 2, 3), Other("running")
    asked = asyncio.Event()

    async def ask(node: str, operation: str, what: BaseModel) -> NodeResult:
        if operation == "jobs":
            asked.set()
        return await other.ask(node, operation, what)

    work = Send(core, ask, FINGERPRINT, KEYS, own="node-a", node="node-b", source=None, keep=False)
    task = asyncio.create_task(work(Progress("chunks", 3)))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (other.asked[-1][0], len(core.chunks)) == ("cancel", 3)
    core.stop()


async def test_a_fetch_asks_the_named_node_until_all_is_there() -> None:
    """A chunk at a time; what nobody sends for a while is told as not arrived, and nothing at all is an error."""
    core, clock, progress = FakeCore(), Clock(), Progress("chunks", 3)
    core.carries_max = 1
    core.elsewhere = {"node-a": {key(number): (FINGERPRINT, ()) for number in (1, 2)}}
    fetch = Fetch(core, FINGERPRINT, KEYS, node="node-a", layout=told_layout(LAYOUT), clock=clock, pause=clock.pause)
    assert await fetch(progress) == {"chunks": 2, "were_there": 0}
    assert (progress.done, progress.failed) == (2, 1)
    assert core.brought_as[0] == ("node-a", *LAYOUT)
    nobody = Fetch(core, FINGERPRINT, key(9), node="node-c", layout=told_layout(LAYOUT), clock=clock, pause=clock.pause)
    with pytest.raises(JobError, match="nothing arrived from node-c"):
        await nobody(Progress("chunks", 1))
    core.stop()


async def test_nothing_here_and_an_unknown_layout_are_errors() -> None:
    """Before the other node is asked."""
    other = Other("done")
    empty = core_with()
    with pytest.raises(JobError, match="the first of the 3 chunks is not in node-a"):
        await send(empty, other)(Progress("chunks", 3))
    core = core_with()
    core.behind = [(key(1), FINGERPRINT, (), "disk")]
    with pytest.raises(JobError, match="lays these chunks out"):
        await send(core, other)(Progress("chunks", 3))
    assert other.asked == []
    core.emit(committed(1))
    empty.stop()
    core.stop()
