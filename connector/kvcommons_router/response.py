"""The framing of an engine's response: where its head and its body end. Pure; no sockets."""

from __future__ import annotations

from typing import Final

HEAD_BYTES_MAX: Final = 64 * 1024
CHUNK_LINE_BYTES_MAX: Final = 4 * 1024
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"x-request-id",
    }
)


KNOWN_HEADS_MAX: Final = 256
KNOWN_HEAD_BYTES_MAX: Final = 2048
_heads: dict[bytes, Head] = {}


class BadResponse(Exception):
    """An engine's answer that is not HTTP as we can relay it."""


class Head:
    """A response head: its status, how its body is framed, and its lines without the hop-by-hop ones."""

    __slots__ = ("chunked", "close", "content_length", "lines", "reason", "status", "usual")

    def __init__(self, status: int, reason: bytes) -> None:
        self.status = status
        self.reason = reason
        self.content_length = -1
        self.chunked = False
        self.close = False
        self.lines = b""
        self.usual: tuple[bytes, bytes] | None = None  # how it is mostly passed on, before and after the request's name


def parse_head(raw: bytes) -> Head:
    """Reads a head, which is often the same as one before; nobody changes what this returns.

    :raises BadResponse: see `read_head`.
    """
    head = _heads.get(raw)
    if head is None:
        head = read_head(raw)
        if len(raw) <= KNOWN_HEAD_BYTES_MAX:
            if len(_heads) >= KNOWN_HEADS_MAX:
                _heads.clear()
            _heads[raw] = head
    return head


def read_head(raw: bytes) -> Head:
    """Reads a head that ends before its empty line.

    :raises BadResponse: if its framing is contradictory or its status line is not HTTP/1.x.
    """
    first, _, rest = raw.partition(b"\r\n")
    if not first.startswith(b"HTTP/1.") or len(first) < 12 or not first[9:12].isdigit():
        raise BadResponse("the status line is not HTTP/1.x")
    head = Head(int(first[9:12]), first[13:])
    head.close = first[7:8] == b"0"
    kept: list[bytes] = []
    named: list[bytes] = []
    for line in rest.split(b"\r\n") if rest else ():
        name, colon, value = line.partition(b":")
        if not colon or not name or name[-1:] in b" \t" or line[:1] in b" \t":
            raise BadResponse("a header line has no name")
        name = name.lower()
        if name == b"content-length":
            _content_length(head, value.strip())
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked" or head.chunked:
                raise BadResponse("the transfer encoding is not chunked")
            head.chunked = True
            continue
        elif name == b"connection":
            named.extend(token.strip() for token in value.lower().split(b","))
            continue
        elif name in _HOP_BY_HOP:
            continue
        kept.append(line)
    _finish(head, kept, named)
    return head


def _content_length(head: Head, value: bytes) -> None:
    if not value.isdigit() or len(value) > 18 or head.content_length not in (-1, int(value)):
        raise BadResponse("the content length is not one number")
    head.content_length = int(value)


def _finish(head: Head, kept: list[bytes], named: list[bytes]) -> None:
    if head.chunked and head.content_length >= 0:
        raise BadResponse("both a content length and chunks")
    if named:
        if b"close" in named:
            head.close = True
        elif b"keep-alive" in named:
            head.close = False
        drop = {name for name in named if name not in (b"close", b"keep-alive", b"content-length")}
        if drop:
            kept = [line for line in kept if line.partition(b":")[0].lower() not in drop]
    head.lines = b"\r\n".join(kept)


# States of the chunk scanner.
_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"
_SIZE, _DATA, _TRAILER = 0, 1, 2


class ChunkScanner:
    """Finds the end of a chunked body in pieces cut anywhere, without copying what it passes over."""

    __slots__ = ("_left", "_line", "_state", "payload")

    def __init__(self, *, keep_payload: bool = False) -> None:
        self._state = _SIZE
        self._line = b""  # an unfinished size or trailer line
        self._left = 0  # bytes of the current chunk still to come, its CRLF included
        self.payload: list[bytes] | None = [] if keep_payload else None

    def feed(self, data: bytes) -> int:
        """Takes the next piece; the number of its bytes that belong to the body once it is complete, else -1.

        :raises BadResponse: if a size line is not one.
        """
        at, size = 0, len(data)
        if self._state == _SIZE and self.payload is None and not self._line:
            # Nearly always: one whole chunk, as the engine wrote it.
            end = data.find(b"\r\n", 0, 18)
            digits = data[:end]
            if end > 0 and not digits.strip(_HEX_DIGITS) and 0 < int(digits, 16) == size - end - 4:
                return -1
        while at < size:
            if self._state == _DATA:
                take = min(self._left, size - at)
                if self.payload is not None:
                    self._keep(data, at, take)
                self._left -= take
                at += take
                if self._left == 0:
                    self._state = _SIZE
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                if len(self._line) > CHUNK_LINE_BYTES_MAX:
                    raise BadResponse("a chunk's size line is too long")
                return -1
            line = self._line + data[at:end] if self._line else data[at:end]
            self._line = b""
            at = end + 1
            if self._state == _TRAILER:
                if line in (b"", b"\r"):
                    return at
                continue
            self._start_chunk(line)
        return -1

    @property
    def left(self) -> int:
        """Bytes until the end of the chunk under way, its CRLF included; 0 before a size line, -1 anywhere else."""
        return -1 if self._line or self._state == _TRAILER else self._left

    def resume(self, left: int) -> None:
        """Others have passed over what came until here."""
        self._left = left
        self._state = _DATA if left else _SIZE

    def _start_chunk(self, line: bytes) -> None:
        if line[-1:] != b"\r":
            raise BadResponse("a chunk's size line does not end in CRLF")
        digits = line[:-1] if b";" not in line else line.partition(b";")[0].strip(b" \t")
        if not digits or len(digits) > 12 or digits.strip(_HEX_DIGITS):
            raise BadResponse("a chunk's size is not a hexadecimal number")
        length = int(digits, 16)
        if length == 0:
            self._state = _TRAILER
        else:
            self._left = length + 2
            self._state = _DATA

    def _keep(self, data: bytes, at: int, take: int) -> None:
        assert self.payload is not None
        body = min(take, max(0, self._left - 2))
        if body:
            self.payload.append(data[at : at + body])

    def take_payload(self) -> bytes:
        """What was inside the chunks since the last call; only with `keep_payload`."""
        assert self.payload is not None
        joined = b"".join(self.payload)
        self.payload.clear()
        return joined
