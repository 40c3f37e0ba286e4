"""The middle of a streamed answer: a read and a send for each piece, by the native module where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

try:
    from kvcommons_core import _native
except ImportError:  # a pure installation: what follows serves
    HAVE_NATIVE = False
else:
    HAVE_NATIVE = True

SPACE: Final = bytearray(64 * 1024)
"""What any engine sends is read into here, and taken out before anything else is read."""
TAIL_BYTES: Final = 2048

Received = Callable[[bytes], None]
Tally = tuple[int, int, bytes]  # bytes and pieces of an answer so far, and its end


class Relay(Protocol):
    """Keeps account of all pieces of an answer. One that is not plain reads them, too, sends what is in the middle of a body
    in chunks, and calls others with everything else."""

    @property
    def left(self) -> int:
        """Bytes until the end of the chunk under way, its CRLF included; 0 at a size line."""

    @property
    def pieces(self) -> int:
        """How many there were of this answer."""

    def begin(self) -> None:
        """A new answer, whose pieces are for others."""

    def aim(self, client: asyncio.WriteTransport, fd: int, left: int) -> bool:
        """From here on pieces go to this client's socket, as long as nothing else waits to; whether that can be done."""

    def stop(self) -> None:
        """Nothing more goes to that client."""

    def note(self, piece: bytes) -> None:
        """Takes account of a piece that was sent by others."""

    def account(self) -> Tally:
        """What was relayed of this answer."""


class PlainRelay:
    """Leaves reading and sending to others."""

    left = 0

    def __init__(self) -> None:
        self.pieces = 0
        self._relayed = 0
        self._last = b""
        self._before_last = b""

    def begin(self) -> None:
        """See `Relay`."""
        self._relayed = self.pieces = 0
        self._last = self._before_last = b""

    def aim(self, client: asyncio.WriteTransport, fd: int, left: int) -> bool:
        """See `Relay`."""
        return False

    def stop(self) -> None:
        """See `Relay`."""

    def note(self, piece: bytes) -> None:
        """See `Relay`."""
        self._relayed += len(piece)
        self.pieces += 1
        self._before_last = self._last
        self._last = piece

    def account(self) -> Tally:
        """See `Relay`."""
        return self._relayed, self.pieces, (self._before_last + self._last)[-TAIL_BYTES:]


def make_relay(received: Received) -> _native.StreamRelay | PlainRelay:
    """The native one, if there is one."""
    return _native.StreamRelay(SPACE, received) if HAVE_NATIVE else PlainRelay()
