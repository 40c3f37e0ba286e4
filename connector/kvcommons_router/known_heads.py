"""Heads of requests that were read before. A client's requests differ in their bodies and, of the head, in the length alone.

What is looked up is the head without the digits of its length, so an entry holds for every length. An entry is made only
from a head that the parser has accepted, of a kind in which nothing but the one Content-Length line says where the body
ends; a head that is equal to it byte for byte is then read alike.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kvcommons_router.request import HeadLines, Request

HEADS_MAX: Final = 1024
HEAD_BYTES_MAX: Final = 4096
_NAME_END: Final = b"ength: "  # of `Content-Length: `, however its first letters are written
_LINE: Final = b"\r\ncontent-length: "
DIGITS_MAX: Final = 12


class KnownHead(NamedTuple):
    """What a head says, its length apart."""

    method: bytes
    target: bytes
    path: bytes
    lines: HeadLines


class KnownHeads:
    """The heads of all connections of a worker; bounded, and begun anew when full."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def clear(self) -> None:
        """Forgets all: what is read from a head has changed."""
        self._heads.clear()

    def find(self, data: bytes) -> tuple[KnownHead, int, int] | None:
        """The head that these bytes begin with, if it was read before; where its body begins, and that one's length."""
        end = data.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
        if end < 0:
            return None
        at = data.rfind(_NAME_END, 0, end) + 7
        line_end = data.find(b"\r", at)
        digits = data[at:line_end]
        head = self._heads.get(data[:at] + data[line_end:end])
        if head is None or not digits.isdigit() or len(digits) > DIGITS_MAX:
            return None
        return head, end + 4, int(digits)

    def remember(self, data: bytes, request: Request) -> None:
        """Takes the head that these bytes begin with, as the parser understood it: HTTP/1.1, kept alive, with a length."""
        end = data.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
        at = data.rfind(_NAME_END, 0, end) + 7
        if end < 0 or at < len(_LINE):
            return
        raw = data[:end]
        line_end = data.find(b"\r", at)
        unusual = (
            raw[at - len(_LINE) : at].lower() != _LINE  # another line's name ends like this
            or raw.lower().count(b"\ncontent-length") != 1
            or raw.count(b"\n") != raw.count(b"\r\n")  # some other line end may have ended the head
            or raw.count(b"\r") != raw.count(b"\r\n")
            or b"\r\n " in raw  # a folded line
            or b"\r\n\t" in raw
            or b"\ntransfer-encoding" in raw.lower()
            or not raw[at:line_end].isdigit()
        )
        if unusual:
            return
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[raw[:at] + raw[line_end:]] = KnownHead(request.method, request.target, request.path, request.head)
