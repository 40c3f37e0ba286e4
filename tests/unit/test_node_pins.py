"""Pins: names, times, quotas, what survives a restart and what a crash leaves. The core behind them is a fake at its seam."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_node import pins_file
from kvcommons_node.api.refusals import Refusal
from kvcommons_node.pinning import Pinning
from kvcommons_node.pins import PINNED_KEYS_MAX, Pin, Pins, TooManyPinsError, split
from node_fakes import FINGERPRINT, FakeCore, committed, key

CHUNK_BYTES = 4_096


def keys(*numbers: int) -> bytes:
    return b"".join(key(number) for number in numbers)


def pin(name: str, *numbers: int, expires: float = 100.0) -> Pin:
    return Pin(name, FINGERPRINT, keys(*numbers), CHUNK_BYTES * len(numbers), 0.0, expires)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def core_with(*numbers: int) -> FakeCore:
    core = FakeCore()
    core.emit(*(committed(number) for number in numbers))
    return core


def pinned(core: FakeCore) -> set[int]:
    return {int.from_bytes(one, "big") for one in core.pinned}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.lists(st.integers(1, 6), max_size=4), st.integers(1, 9)),
        st.tuples(st.just("remove"), st.sampled_from("abc")),
        st.tuples(st.just("expire"), st.integers(1, 9)),
    ),
    max_size=30,
)


@given(steps)
def test_a_chunk_is_held_exactly_as_long_as_a_pin_names_it(script: list[tuple[object, ...]]) -> None:
    """Whatever is pinned, replaced, removed and expired in whatever order: the keys told to be pinned and let go add up to a model."""
    pins, held = Pins(), set[bytes]()
    model: dict[str, tuple[bytes, float]] = {}
    for step in script:
        match step:
            case ("put", str(name), list(numbers), int(end)):
                fresh, released = pins.put(pin(name, *numbers, expires=float(end)))
                held = (held - set(split(released))) | set(split(fresh))
                model[name] = (keys(*numbers), float(end))
            case ("remove", str(name)):
                held -= set(split(pins.remove(name)))
                model.pop(name, None)
            case ("expire", int(now)):
                gone, released = pins.expire(float(now))
                held -= set(split(released))
                assert {one.name for one in gone} == {name for name, (_, end) in model.items() if end <= now}
                model = {name: one for name, one in model.items() if one[1] > now}
        wanted = Counter(one for chain, _ in model.values() for one in split(chain))
        assert held == set(wanted)
        assert all(pins.holds(one) for one in held)
        assert pins.bytes_pinned == CHUNK_BYTES * len(wanted)
        assert [one.name for one in pins.every()] == sorted(model)


def test_what_a_pin_would_cost_counts_each_chunk_once_and_what_it_replaces_not_at_all() -> None:
    """The quota is asked before anything changes: shared chunks cost nothing, and a replaced pin's own are given back."""
    pins = Pins()
    pins.put(pin("a", 1, 2))
    pins.put(pin("b", 2, 3))
    assert pins.bytes_with("c", CHUNK_BYTES, keys(2, 3, 4)) == 4 * CHUNK_BYTES
    assert pins.bytes_with("a", CHUNK_BYTES, keys(5)) == 3 * CHUNK_BYTES
    assert pins.bytes_pinned == 3 * CHUNK_BYTES


def test_more_chunks_than_the_limit_are_refused_and_nothing_changes() -> None:
    """The registry is bounded: one chunk more than it may hold is an error that leaves it as it was."""
    pins = Pins()
    pins.put(pin("a", 1))
    with pytest.raises(TooManyPinsError, match="chunks in pins"):
        pins.put(Pin("b", FINGERPRINT, bytes(32) * PINNED_KEYS_MAX, 0, 0.0, 9.0))
    assert [one.name for one in pins.every()] == ["a"]


def test_pages_go_through_all_names_once() -> None:
    """A page ends with where the next begins; the last says that it is the last."""
    pins = Pins()
    for name in "dbeac":
        pins.put(pin(name, ord(name)))
    first, following = pins.page("", 2)
    second, further = pins.page(following, 2)
    third, end = pins.page(further, 2)
    assert [one.name for one in (*first, *second, *third)] == list("abcde")
    assert end == ""


async def test_the_leading_chunks_that_are_here_are_pinned(tmp_path: Path) -> None:
    """A pin takes what can be hit, the chunks up to the first that is missing, and says how many were asked for."""
    core = core_with(1, 2, 4)
    answer = await Pinning(core, tmp_path / "pins", 1 << 20, Clock()).pin(
        FINGERPRINT, keys(1, 2, 3, 4), CHUNK_BYTES, "doc", 60
    )
    assert (answer.pin.chunks, answer.asked_chunks, answer.pin.ttl_seconds) == (2, 4, 60)
    assert pinned(core) == {1, 2}
    core.stop()


async def test_asking_twice_without_a_name_pins_once(tmp_path: Path) -> None:
    """The name made of the chunks makes the call idempotent: the second one renews the time."""
    core, clock = core_with(1, 2), Clock()
    pinning = Pinning(core, tmp_path / "pins", 1 << 20, clock)
    first = await pinning.pin(FINGERPRINT, keys(1, 2), CHUNK_BYTES, None, 60)
    clock.now += 50
    second = await pinning.pin(FINGERPRINT, keys(1, 2), CHUNK_BYTES, None, 60)
    assert first.pin.name == second.pin.name
    assert (first.replaced, second.replaced) == (False, True)
    assert (pinning.page("", 9).total, second.pin.ttl_seconds) == (1, 60)
    core.stop()


async def test_a_chunk_that_is_evicted_while_it_is_being_pinned_is_not_claimed(tmp_path: Path) -> None:
    """Between the question and the pin eviction may take the end of the chain: the answer counts what is held."""

    class Evicting(FakeCore):
        def pin(self, keys: bytes, pinned: bool) -> int:
            self.chunks.pop(key(3), None)
            return super().pin(keys, pinned)

    core = Evicting()
    core.emit(committed(1), committed(2), committed(3))
    answer = await Pinning(core, tmp_path / "pins", 1 << 20).pin(FINGERPRINT, keys(1, 2, 3), CHUNK_BYTES, "doc", 60)
    assert answer.pin.chunks == 2
    assert pinned(core) == {1, 2}
    core.stop()


async def test_a_pin_over_the_quota_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """The refusal says how much it would be and how much may be."""
    core = core_with(1, 2, 3)
    pinning = Pinning(core, tmp_path / "pins", 2 * CHUNK_BYTES, Clock())
    await pinning.pin(FINGERPRINT, keys(1), CHUNK_BYTES, "a", 60)
    with pytest.raises(Refusal) as refused:
        await pinning.pin(FINGERPRINT, keys(1, 2, 3), CHUNK_BYTES, "b", 60)
    assert refused.value.detail.message == f"{3 * CHUNK_BYTES} bytes would be pinned, of {2 * CHUNK_BYTES} at most"
    assert pinned(core) == {1}
    core.stop()


async def test_a_pin_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """The chunks of a pin whose time is over are let go, those that another pin holds are not."""

    class Telling(FakeCore):
        def __init__(self) -> None:
            super().__init__()
            self.unpinned = asyncio.Event()
            self.loop = asyncio.get_running_loop()

        def pin(self, keys: bytes, pinned: bool) -> int:
            found = super().pin(keys, pinned)
            if not pinned:
                self.loop.call_soon_threadsafe(self.unpinned.set)
            return found

    core, clock = Telling(), Clock()
    core.emit(committed(1), committed(2))
    pinning = Pinning(core, tmp_path / "pins", 1 << 20, clock)
    await pinning.pin(FINGERPRINT, keys(1, 2), CHUNK_BYTES, "short", 10)
    await pinning.pin(FINGERPRINT, keys(1), CHUNK_BYTES, "long", 100)
    clock.now += 11
    running = asyncio.create_task(pinning.run())
    async with asyncio.timeout(5):
        await core.unpinned.wait()
    running.cancel()
    assert pinned(core) == {1}
    assert [one.name for one in pinning.page("", 9).pins] == ["long"]
    core.stop()


async def test_pins_survive_the_daemon_and_what_nobody_holds_is_let_go(tmp_path: Path) -> None:
    """A restarted daemon reads its pins, ends those whose time passed meanwhile, and unpins what a crash left behind."""
    path, clock = tmp_path / "pins", Clock()
    core = core_with(1, 2, 3, 4)
    former = Pinning(core, path, 1 << 20, clock)
    await former.pin(FINGERPRINT, keys(1, 2), CHUNK_BYTES, "kept", 100)
    await former.pin(FINGERPRINT, keys(3), CHUNK_BYTES, "over", 10)
    core.pin(keys(4), True)
    clock.now += 50
    later = Pinning(core, path, 1 << 20, clock)
    await later.restore()
    assert [(one.name, one.ttl_seconds) for one in later.page("", 9).pins] == [("kept", 50)]
    assert pinned(core) == {1, 2}
    assert path.stat().st_mode & 0o777 == 0o600
    core.stop()


async def test_a_pin_ends_with_its_chunks_and_keeps_those_that_are_left(tmp_path: Path) -> None:
    """What was cleared is not pinned any more, under whatever name; of a pin that lost its end the beginning stays pinned."""
    core = core_with(1, 2, 3)
    pinning = Pinning(core, tmp_path / "pins", 1 << 20, Clock())
    await pinning.pin(FINGERPRINT, keys(1), CHUNK_BYTES, "a", 60)
    await pinning.pin(FINGERPRINT, keys(2, 3), CHUNK_BYTES, "b", 60)
    assert await pinning.cleared() == 0
    core.clear_some(FINGERPRINT, None, keys(1, 3), 0, [])
    assert await pinning.cleared() == 1
    assert [(one.name, one.chunks, one.bytes) for one in pinning.page("", 9).pins] == [("b", 1, CHUNK_BYTES)]
    assert pinned(core) == {2}
    core.stop()


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"name": "../x"}', b"[" * 9_000, b"\xff"])
def test_a_damaged_line_of_the_file_costs_only_itself(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written before and behind a damaged line is read; the line is named in the log."""
    path = tmp_path / "pins"
    pins_file.write(path, [pin("a", 1), pin("b", 2)])
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, second]))
    assert [one.name for one in pins_file.read(path)] == ["a", "b"]
    assert "line 2 is no pin" in caplog.text


def test_a_file_that_can_t_be_written_costs_no_pin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full or read-only disk: the chunks are pinned all the same, and the log says what that means."""
    core = core_with(1)
    pinning = Pinning(core, tmp_path / "missing" / "pins", 1 << 20, Clock())
    asyncio.run(pinning.pin(FINGERPRINT, keys(1), CHUNK_BYTES, "a", 60))
    assert pinned(core) == {1}
    assert "pins will not outlive this daemon" in caplog.text
    core.stop()


def test_the_next_end_is_that_of_a_pin_that_is_there() -> None:
    """A pin that was renewed or removed leaves nothing behind that would wake anybody, however often that happens."""
    pins = Pins()
    for end in range(5, 1_000):
        pins.put(pin("a", 1, expires=float(end)))
    assert pins.next_end() == 999.0
    pins.remove("a")
    assert pins.next_end() is None
