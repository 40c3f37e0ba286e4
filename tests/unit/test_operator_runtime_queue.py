"""Which objects are due: bursts become one, failures wait longer, nothing is done twice at once or forgotten."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from kvcommons_operator.reconcile.queue import BACKOFF_SECONDS_MAX, INTERVAL_SECONDS_MAX, WorkQueue


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock=clock, rng=lambda: 1.0)


async def taken(queue: WorkQueue[str]) -> str | None:
    """What is due now, if anything."""
    try:
        return await asyncio.wait_for(queue.take(), 0.02)
    except TimeoutError:
        return None


async def test_a_burst_is_one_look(queue: WorkQueue[str], clock: Clock) -> None:
    """Events that come together are done together."""
    for _ in range(100):
        queue.add("a")
    assert await taken(queue) is None
    clock.now = 0.1
    assert await taken(queue) == "a"
    queue.done("a")
    clock.now = 10.0
    assert await taken(queue) is None


async def test_what_happens_meanwhile_is_done_afterwards_and_never_at_once(queue: WorkQueue[str], clock: Clock) -> None:
    """An object is in one worker's hands only; an event of that time is not lost."""
    queue.add("a", 0.0)
    assert await taken(queue) == "a"
    queue.add("a", 0.0)
    clock.now = 5.0
    assert await taken(queue) is None
    queue.done("a")
    assert await taken(queue) == "a"


async def test_a_storm_is_looked_at_once_a_second(queue: WorkQueue[str], clock: Clock) -> None:
    """An object whose events never end does not occupy the workers."""
    looks = 0
    for tick in range(100):
        clock.now = tick / 10
        queue.add("a", 0.0)
        if await taken(queue) is not None:
            looks += 1
            queue.done("a")
    assert looks == 10


async def test_what_somebody_waits_for_is_not_put_off_by_the_crowd(queue: WorkQueue[str], clock: Clock) -> None:
    """With hundreds of objects that change, each is left alone for longer, but for what it is ready by."""
    for number in range(200):
        queue.add(f"other {number}", 0.0)
        assert await taken(queue) is not None
        queue.done(f"other {number}")
    for name in ("calm", "soon"):
        queue.add(name, 0.0)
        assert await taken(queue) == name
        queue.done(name)
    queue.add("calm", 0.0)
    queue.add("soon", 0.0, soon=True)
    clock.now = 1.0
    assert await taken(queue) == "soon"
    assert await taken(queue) is None
    clock.now = 4.5
    assert await taken(queue) == "calm"


async def test_failures_wait_twice_as_long_each_time_up_to_a_bound(queue: WorkQueue[str], clock: Clock) -> None:
    """A success forgets them."""
    pauses = []
    for _ in range(12):
        queue.add("a", 0.0)
        clock.now += 1_000
        assert await taken(queue) == "a"
        pauses.append(queue.failed("a"))
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == BACKOFF_SECONDS_MAX
    clock.now += 1_000
    assert await taken(queue) == "a"
    queue.done("a")
    queue.add("a", 0.0)
    clock.now += 1_000
    assert await taken(queue) == "a"
    assert queue.failed("a") == 0.5


async def test_the_sooner_of_two_times_holds(queue: WorkQueue[str], clock: Clock) -> None:
    """A look that is wanted sooner takes the place of a later one, and does not add to it."""
    queue.add("a", 600.0)
    queue.add("a", 1.0)
    clock.now = 1.0
    assert await taken(queue) == "a"
    queue.done("a")
    clock.now = 700.0
    assert await taken(queue) is None


async def test_others_are_not_held_up(queue: WorkQueue[str], clock: Clock) -> None:
    """One object that fails or waits is nobody else's matter."""
    queue.add("slow", 0.0)
    assert await taken(queue) == "slow"
    queue.failed("slow", 30.0)
    queue.add("quick", 0.0)
    assert await taken(queue) == "quick"
    assert len(queue) == 1


async def test_what_goes_first_goes_before_all_that_is_due(clock: Clock) -> None:
    """Hundreds of deployments that came before a pool do not keep it waiting; what is not due yet keeps nobody."""
    queue: WorkQueue[str] = WorkQueue(clock=clock, rng=lambda: 1.0, first=lambda key: key.startswith("pool"))
    for number in range(5):
        queue.add(f"chat-{number}", 0.0)
    clock.now = 0.5
    queue.add("pool-a", 0.0)
    queue.add("pool-later", 60.0)
    assert [await taken(queue) for _ in range(7)] == ["pool-a", *(f"chat-{number}" for number in range(5)), None]
    clock.now = 61.0
    assert await taken(queue) == "pool-later"


async def test_when_hundreds_change_at_once_each_is_looked_at_less_often(clock: Clock, queue: WorkQueue[str]) -> None:
    """The number of looks a second grows far more slowly than the number of objects; every one of them is still looked at within seconds,
    and the interval is the short one again when the crowd is gone."""
    looks: dict[str, list[float]] = {}
    for tick in range(100):
        clock.now = tick / 5
        for number in range(200):
            queue.add(f"chat-{number}", 0.0)
        while (key := await taken(queue)) is not None:
            looks.setdefault(key, []).append(clock.now)
            queue.done(key)
    assert len(looks) == 200
    assert sum(map(len, looks.values())) / 20.0 < 100
    gaps = [later - one for times in looks.values() for one, later in pairwise(times)]
    assert 2.0 < max(gaps) <= INTERVAL_SECONDS_MAX + 0.2
    clock.now = 60.0
    for number in range(200):
        queue.forget(f"chat-{number}")
    queue.add("a", 0.0)
    assert await taken(queue) == "a"
    queue.done("a")
    queue.add("a", 0.0)
    clock.now = 61.1
    assert await taken(queue) == "a"
