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
    HAVE_NATIVE = hasattr(_native, "StreamRelay")  # a tree's build may be older than its Python

SPACE: Final = bytearray(64 * 1024)
"""What any engine sends is read into here, and taken out before anything else is read."""
TAIL_BYTES: Final = 2048

Otherwise = Callable[[int, int], None]


class Relay(Protocol):
    """Reads for a connection to an engine, sends what is in the middle of a body in chunks, and keeps account of all pieces.

    What is for others is told to `otherwise(sent, nbytes)`: of what lies in the space now the client's socket took `sent`
    bytes and the rest must follow; or -1: nothing was done.
    """

    @property
    def left(self) -> int:
        """Bytes until the end of the chunk under way, its CRLF included; 0 at a size line."""

    @property
    def relayed(self) -> int:
        """Bytes of this answer so far."""

    @property
    def pieces(self) -> int:
        """In how many pieces they came."""

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where to read to."""

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""

    def begin(self) -> None:
        """A new answer, whose pieces are for others."""

    def aim(self, client: asyncio.WriteTransport, fd: int, left: int) -> bool:
        """From here on pieces go to this client's socket, as long as nothing else waits to; whether that can be done."""

    def stop(self) -> None:
        """Nothing more goes to that client."""

    def note(self, piece: bytes) -> None:
        """Takes account of a piece that was sent by others."""

    def tail(self) -> bytes:
        """The last bytes of this answer."""


class PlainRelay:
    """Leaves all pieces to others."""

    left = 0

    def __init__(self, otherwise: Otherwise) -> None:
        self.relayed = 0
        self.pieces = 0
        self._otherwise = otherwise
        self._last = b""
        self._before_last = b""

    def get_buffer(self, sizehint: int) -> bytearray:
        """See `Relay`."""
        return SPACE

    def buffer_updated(self, nbytes: int) -> None:
        """See `Relay`."""
        self._otherwise(-1, nbytes)

    def begin(self) -> None:
        """See `Relay`."""
        self.relayed = self.pieces = 0
        self._last = self._before_last = b""

    def aim(self, client: asyncio.WriteTransport, fd: int, left: int) -> bool:
        """See `Relay`."""
        return False

    def stop(self) -> None:
        """See `Relay`."""

    def note(self, piece: bytes) -> None:
        """See `Relay`."""
        self.relayed += len(piece)
        self.pieces += 1
        self._before_last = self._last
        self._last = piece

    def tail(self) -> bytes:
        """See `Relay`."""
        return (self._before_last + self._last)[-TAIL_BYTES:]


def make_relay(otherwise: Otherwise) -> Relay:
    """The native one, if there is one."""
    return _native.StreamRelay(SPACE, otherwise) if HAVE_NATIVE else PlainRelay(otherwise)
