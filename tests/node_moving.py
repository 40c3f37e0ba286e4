"""A core that has some of three chunks, and a clock, for tests of what moves them."""

from __future__ import annotations

from node_fakes import FakeCore, committed, key

KEYS = b"".join(key(number) for number in (1, 2, 3))


class Clock:
    """Only pauses move it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.now += seconds


def core_with(*numbers: int) -> FakeCore:
    core = FakeCore()
    core.known_tiers = [("disk", "serving", "", {})]
    core.emit(*(committed(number) for number in numbers))
    return core
