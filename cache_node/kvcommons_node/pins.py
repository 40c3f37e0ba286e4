"""Pins: chunks that eviction leaves alone until a time, under names. Decisions here are pure; `pinning` acts on them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kvcommons_core.limits import KEY_BYTES

PINS_MAX = 4_096
PINNED_KEYS_MAX = 1 << 20
"""All pins together: what a node's file of pins may hold."""


@dataclass(frozen=True)
class Pin:
    """The leading chunks of one chain."""

    name: str
    fingerprint: bytes
    keys: bytes
    """Token keys, concatenated, from the first chunk on."""
    bytes_pinned: int
    created: float
    """Seconds since 1970, as `expires`."""
    expires: float

    @property
    def chunks(self) -> int:
        return len(self.keys) // KEY_BYTES


class TooManyPinsError(Exception):
    """One more would pass a limit of the registry."""

    def __init__(self, what: str, asked: int, most: int) -> None:
        super().__init__(f"{asked} {what}, of {most} at most")
        self.what, self.asked, self.most = what, asked, most


def split(keys: bytes) -> Iterator[bytes]:
    """One by one."""
    return (keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES))


def name_of(fingerprint: bytes, keys: bytes) -> str:
    """What a pin is called that was given no name: the same for the same chunks, so that asking twice pins once."""
    return hashlib.sha256(b"pin\0" + fingerprint + keys).hexdigest()[:16]


class Pins:
    """Which pins there are. A chunk is held as long as any pin names it."""

    def __init__(self) -> None:
        self._pins: dict[str, Pin] = {}
        self._holds: Counter[bytes] = Counter()
        self._sizes: dict[bytes, int] = {}
        self.bytes_pinned = 0
        """Each chunk counted once: the sum of the sizes, which may be a million of them."""

    def __len__(self) -> int:
        return len(self._pins)

    def get(self, name: str) -> Pin | None:
        return self._pins.get(name)

    def every(self) -> list[Pin]:
        return [self._pins[name] for name in sorted(self._pins)]

    def page(self, after: str, most: int) -> tuple[list[Pin], str]:
        """Pins by name, beginning behind `after`; the second value goes on from there, empty at the end."""
        names = sorted(name for name in self._pins if name > after)[: most + 1]
        return [self._pins[name] for name in names[:most]], names[most - 1] if len(names) > most else ""

    def bytes_with(self, name: str, fingerprint_chunk_bytes: int, keys: bytes) -> int:
        """What would be pinned in all, were `name` to hold these keys (and nothing else)."""
        leaving = set(self._only_of(name))
        staying = self.bytes_pinned - sum(self._sizes[key] for key in leaving)
        fresh = sum(1 for key in set(split(keys)) if key not in self._sizes or key in leaving)
        return staying + fresh * fingerprint_chunk_bytes

    def put(self, pin: Pin) -> tuple[bytes, bytes]:
        """Adds a pin, or replaces the one of its name. Returns the keys to pin and those to let go.

        :raises TooManyPinsError: past PINS_MAX or PINNED_KEYS_MAX; nothing is changed then."""
        former = self._pins.get(pin.name)
        if former is None and len(self._pins) >= PINS_MAX:
            raise TooManyPinsError("pins", len(self._pins) + 1, PINS_MAX)
        keys = sum(one.chunks for one in self._pins.values()) - (former.chunks if former else 0) + pin.chunks
        if keys > PINNED_KEYS_MAX:
            raise TooManyPinsError("chunks in pins", keys, PINNED_KEYS_MAX)
        size = pin.bytes_pinned // pin.chunks if pin.chunks else 0
        for key in split(pin.keys):
            self._holds[key] += 1
            if key not in self._sizes:
                self._sizes[key] = size
                self.bytes_pinned += size
        released = self._drop(former) if former is not None else b""
        self._pins[pin.name] = pin
        return pin.keys, released

    def remove(self, name: str) -> bytes:
        """Returns the keys that no pin holds any more."""
        pin = self._pins.pop(name, None)
        return self._drop(pin) if pin is not None else b""

    def expire(self, now: float) -> tuple[list[Pin], bytes]:
        """Removes those whose time is over. Returns them, and the keys that no pin holds any more."""
        gone = [pin for pin in self._pins.values() if pin.expires <= now]
        return gone, b"".join([self.remove(pin.name) for pin in gone])

    def next_end(self) -> float | None:
        """When the next one's time is over."""
        return min((pin.expires for pin in self._pins.values()), default=None)

    def holds(self, key: bytes) -> bool:
        return key in self._holds

    def _only_of(self, name: str) -> Iterator[bytes]:
        pin = self._pins.get(name)
        return (key for key in split(pin.keys) if self._holds[key] == 1) if pin is not None else iter(())

    def _drop(self, pin: Pin) -> bytes:
        released: list[bytes] = []
        for key in split(pin.keys):
            self._holds[key] -= 1
            if self._holds[key] <= 0:
                del self._holds[key]
                self.bytes_pinned -= self._sizes.pop(key)
                released.append(key)
        return b"".join(released)
