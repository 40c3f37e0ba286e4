"""Moving chunks between places of a node: what arrives, what leaves, and what does not. The core is a fake at its seam."""

from __future__ import annotations

import pytest
from kvcommons_node.jobs import JobError, Progress
from kvcommons_node.moving import STILL_SECONDS_MAX, Move
from node_fakes import FINGERPRINT, FakeCore, key
from node_moving import KEYS, Clock, core_with


def move(core: FakeCore, source: str, target: str, clock: Clock, *, keep: bool = False) -> Move:
    return Move(core, FINGERPRINT, KEYS, source=source, target=target, keep=keep, clock=clock, pause=clock.pause)


def on_disk(core: FakeCore) -> set[bytes]:
    return {item[0] for item in core.behind}


async def test_what_has_arrived_leaves_its_place() -> None:
    """Memory lets go of what the disk has by then; a little at a time is asked for again."""
    core, progress, clock = core_with(1, 2, 3), Progress("chunks", 3), Clock()
    core.carries_max = 1
    result = await move(core, "memory", "disk", clock)(progress)
    assert result == {"chunks": 3, "were_there": 0, "removed_from_source": 3}
    assert (core.chunks, on_disk(core)) == ({}, {key(1), key(2), key(3)})
    assert (progress.done, progress.failed, progress.total) == (3, 0, 3)
    core.stop()


async def test_a_copy_leaves_the_source_as_it_is() -> None:
    """Back into memory, and still on the disk."""
    core, clock = core_with(1), Clock()
    core.behind = [(key(number), FINGERPRINT, (), "disk") for number in (1, 2)]
    result = await move(core, "disk", "memory", clock, keep=True)(Progress("chunks", 3))
    assert result == {"chunks": 2, "were_there": 1, "removed_from_source": 0}
    assert (set(core.chunks), len(core.behind)) == ({key(1), key(2)}, 2)
    core.stop()


async def test_what_does_not_arrive_stays_where_it_is() -> None:
    """A tier that takes nothing costs nothing: after a while the job has failed, and says why."""
    core, clock = core_with(1, 2), Clock()
    core.carries_max = 0
    with pytest.raises(JobError, match="nothing arrived in disk"):
        await move(core, "memory", "disk", clock)(Progress("chunks", 3))
    assert (len(core.chunks), clock.now >= STILL_SECONDS_MAX) == (2, True)
    core.stop()


async def test_nothing_at_the_source_is_an_error() -> None:
    """It says how many chunks were asked for and where they are not."""
    core, clock = core_with(), Clock()
    with pytest.raises(JobError, match="none of the 3 chunks is in disk"):
        await move(core, "disk", "memory", clock)(Progress("chunks", 3))
    core.stop()
