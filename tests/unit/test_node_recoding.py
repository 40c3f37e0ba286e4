"""Compress and decompress as jobs, over HTTP; the core is a fake at its seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from kvcommons_node.jobs import JobError, Progress
from kvcommons_node.recoding import Recode
from node_fakes import FINGERPRINT, FakeCore, committed, key
from node_moving import Clock
from node_served import job_of, serve_in


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as one:
        yield one


def recode(core: FakeCore, turn: asyncio.Lock | None = None) -> Recode:
    meant = [(FINGERPRINT, key(1)), (None, b"")]
    return Recode(
        core,
        turn or asyncio.Lock(),
        "lossless",
        meant,
        tier="disk",
        from_memory=True,
        bytes_per_second_max=0,
        pause=Clock().pause,
    )


async def test_compress_and_decompress_are_jobs_of_what_is_meant(stack: AsyncExitStack) -> None:
    """All, a fingerprint by its first digits, or some chunks of it; the result counts shards and bytes."""
    node = await serve_in(stack)
    node.core.known_tiers = [("disk", "serving", "", {})]
    node.core.emit(committed(1))
    some: dict[str, object] = {"fingerprint": FINGERPRINT.hex()[:8], "keys": [key(1).hex()], "tier": "disk"}
    bodies: tuple[dict[str, object], ...] = ({}, {**some, "from_memory": False})
    for operation, more in (("compress", {"codec": "lossless"}), ("decompress", {})):
        for body in bodies:
            _, answer = await node.post(f"/v1/{operation}", {**body, **more})
            job = await job_of(node, answer["job"]["job"])
            assert (job["kind"], job["state"], job["result"]["rewritten"]) == (operation, "done", 3)
            assert (job["progress"]["done"], job["progress"]["unit"]) == (4, "shards")
    expected = [(None, b"", "", True), (FINGERPRINT, key(1), "disk", False)]
    assert node.core.recoded == [(codec, *one) for codec in ("lossless", "none") for one in expected]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "codec"),
        ({"codec": "zip"}, 400, "codec"),
        ({"codec": "lossless", "tier": "tape"}, 404, "tier"),
        ({"codec": "lossless", "model": "nobody"}, 404, "model"),
        ({"codec": "lossless", "keys": ["ab" * 32]}, 400, None),
    ],
)
async def test_what_can_t_be_meant_is_refused(
    stack: AsyncExitStack, body: dict[str, object], status: int, field: str | None
) -> None:
    """Before a job begins, with the field."""
    node = await serve_in(stack)
    node.core.known_tiers = [("disk", "serving", "", {})]
    found, answer = await node.post("/v1/compress", body)
    assert (found, answer["error"].get("field")) == (status, field)


async def test_a_run_waits_for_one_that_ends_and_tells_what_the_node_does_not_allow() -> None:
    """The core does one at a time; a codec that the node's settings forbid ends the job with the core's own words."""
    core = FakeCore()
    core.recode_errors = [RuntimeError("another run is under way: wait for it, or cancel it")]
    progress = Progress("shards", 0)
    result = await recode(core)(progress)
    assert (result["rewritten"], progress.done, progress.total) == (6, 8, 8)
    core.recode_errors = [ValueError("codec int8: set lossy to allow")]
    with pytest.raises(JobError, match="set lossy to allow"):
        await recode(core)(Progress("shards", 0))
    core.recode_errors = [RuntimeError("another run is under way") for _ in range(1_000)]
    with pytest.raises(JobError, match="another run"):
        await recode(core)(Progress("shards", 0))
    core.stop()


async def test_what_was_refused_or_failed_is_not_told_as_done() -> None:
    """A job whose progress has failures ends the command with status 1."""
    core, progress = FakeCore(), Progress("shards", 0)
    core.recode_says = {"state": "done", "why": "", "refused": 1, "failed": 1, "rewritten": 2}
    result = await recode(core)(progress)
    assert (result["refused"], progress.done, progress.failed) == (2, 4, 4)
    core.recode_says = {"state": "failed", "why": "out of memory"}
    with pytest.raises(JobError, match="out of memory"):
        await recode(core)(Progress("shards", 0))
    core.stop()


async def test_a_cancelled_job_ends_its_run() -> None:
    """And lets the next one begin."""
    core, turn = FakeCore(), asyncio.Lock()
    core.recode_says = {"state": "running", "why": ""}
    task = asyncio.create_task(recode(core, turn)(Progress("shards", 0)))
    async with asyncio.timeout(10):
        while not core.recoded:  # noqa: ASYNC110 - the core has no way to call back
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (core.recode_cancelled, turn.locked()) == ([1], False)
    core.stop()
