"""A connection to an engine: one request at a time, and its answer relayed as the bytes come."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol, cast

from kvcommons_router import sockets
from kvcommons_router.relay import TAIL_BYTES, PlainRelay, Relay, Tally, make_relay
from kvcommons_router.response import HEAD_BYTES_MAX, BadResponse, ChunkScanner, Head, parse_head

JOINED_BYTES_MAX: Final = 8192  # a longer body is not copied once more


class Receiver(Protocol):
    """Who gets an answer; every call comes from the event loop, and `answered` or `broken` is the last one."""

    def head(self, upstream: Upstream, head: Head) -> None:
        """The head came. Whoever doesn't want the rest calls `upstream.abandon`."""

    def body(self, data: bytes, payload: bytes | None) -> None:
        """The next piece, as it came; `payload` is what is inside its chunks where that was asked for."""

    def answered(self) -> None:
        """The answer is complete."""

    def broken(self, reason: str) -> None:
        """The connection ended, or what came is not an answer, before it was complete."""


class Keeper(Protocol):
    """Who keeps connections between requests."""

    def give_back(self, upstream: Upstream) -> None:
        """A connection is free again."""

    def lost(self, upstream: Upstream) -> None:
        """A connection ended."""


class Upstream(asyncio.BaseProtocol):
    """One connection to an engine."""

    transport: asyncio.Transport

    def __init__(self, pool: Keeper) -> None:
        self.pool = pool
        self.receiver: Receiver | None = None
        self.closed = False
        self.reused = False
        self.dechunk = False
        self.idle_since = 0.0
        self.last_at = 0.0
        self._time = time.monotonic
        relay = make_relay(self.data_received)
        self._relay: Relay = relay
        if not isinstance(relay, PlainRelay):  # the loop takes us for a BufferedProtocol, and calls the relay itself
            self.get_buffer = relay.get_buffer
            self.buffer_updated = relay.buffer_updated
        self._pieces_seen = 0
        self._only: bytes | None = b""  # the first piece, until there are more or may be: then the relay keeps account
        self._client: asyncio.WriteTransport | None = None  # pieces in the middle of a body in chunks go there at once
        self._client_fd = -1  # where the relay may send them
        self._aimed = False  # the relay sends them, and knows better than the scanner where we are
        self._buffer = b""
        self._scanner: ChunkScanner | None = None
        self._left = -1  # -1: the head has not come; -2: chunked or until the end of the connection
        self._until_close = False
        self._reusable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A request may be sent."""
        self._time = asyncio.get_running_loop().time
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class
        sockets.prepare(transport)

    def begin(self, receiver: Receiver, now: float, *, dechunk: bool) -> None:
        """Takes a new receiver; `send` is next."""
        self.receiver = receiver
        self.dechunk = dechunk
        self.last_at = now
        self._only = b""
        self._left = -1
        self._buffer = b""
        self._scanner = None
        self._until_close = False

    def send(self, head: bytes, body: bytes | memoryview, end: bytes) -> None:
        """Sends the request."""
        parts = (head, body, end)
        self.transport.writelines(parts if len(body) > JOINED_BYTES_MAX else (b"".join(parts),))

    def pass_to(self, client: asyncio.WriteTransport, fd: int) -> None:
        """What comes from now on goes to this client as it comes, where the framing allows it; `fd` is its socket or -1."""
        if self._scanner is not None:
            self._client = client
            self._client_fd = -1 if isinstance(self._relay, PlainRelay) else fd
            if self._only is not None:
                self._leave_account()
            self._aim(self._scanner)

    def _aim(self, scanner: ChunkScanner) -> None:
        client, left = self._client, scanner.left
        self._aimed = client is not None and left >= 0 and self._relay.aim(client, self._client_fd, left)
        if not self._aimed:
            self._relay.stop()

    def note(self, data: bytes, now: float) -> None:
        """Takes account of a piece that was relayed."""
        self.last_at = now
        if self._only == b"":
            self._only = data
            return
        if self._only is not None:
            self._leave_account()
        self._relay.note(data)

    def _leave_account(self) -> None:
        relay, only = self._relay, self._only
        relay.begin()
        if only:
            relay.note(only)
        self._only = None
        self._pieces_seen = 0

    def heard_at(self, now: float) -> float:
        """When something came last; of what is relayed in the middle of an answer only the next call after it knows."""
        if self._only is None:
            pieces = self._relay.pieces
            if pieces != self._pieces_seen:
                self._pieces_seen = pieces
                self.last_at = now
        return self.last_at

    def account(self) -> Tally:
        """Bytes and pieces relayed of the answer under way, and the end of them, where the usage is."""
        only = self._only
        if only is None:
            return self._relay.account()
        return len(only), 1 if only else 0, only[-TAIL_BYTES:]

    def data_received(self, data: bytes) -> None:
        """Relays what came."""
        receiver = self.receiver
        if receiver is None:  # nobody asked: it is no longer in step
            self._drop()
            return
        try:
            if self._client is not None:
                self._pass(receiver, self._client, data)
            elif self._left == -1:
                self._head(receiver, data)
            else:
                self._body(receiver, data)
        except BadResponse as error:
            self._fail(str(error))

    def _pass(self, receiver: Receiver, client: asyncio.WriteTransport, data: bytes) -> None:
        """What the relay can't take: the end, what is cut within a size line, and all that comes while a client is behind."""
        scanner = self._scanner
        assert scanner is not None
        if self._aimed:
            scanner.resume(self._relay.left)
        end = scanner.feed(data)
        if end >= 0:
            self._last_chunk(receiver, data, end)
            return
        client.write(data)
        self.last_at = self._time()
        self._relay.note(data)
        if self._client_fd >= 0:
            self._aim(scanner)

    def _head(self, receiver: Receiver, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > HEAD_BYTES_MAX:
                    raise BadResponse("the head is too long")
                self._buffer = data
                return
            head = parse_head(data[:end])
            data = data[end + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                raise BadResponse("it switched protocols")
        self._buffer = b""
        self._frame(head)
        receiver.head(self, head)
        if self.receiver is not receiver:
            return
        if self._left == 0:
            self._done(len(data))
        elif data:
            self._body(receiver, data)

    def _frame(self, head: Head) -> None:
        self._reusable = not head.close
        if head.status in (204, 304):
            self._left = 0
        elif head.chunked:
            self._left = -2
            self._scanner = ChunkScanner(keep_payload=self.dechunk)
        elif head.content_length >= 0:
            self._left = head.content_length
        else:
            self._left = -2
            self._until_close = True

    def _body(self, receiver: Receiver, data: bytes) -> None:
        scanner = self._scanner
        if scanner is not None:
            end = scanner.feed(data)
            if end < 0:
                receiver.body(data, scanner.take_payload() if self.dechunk else None)
                return
            self._last_chunk(receiver, data, end)
            return
        if self._until_close:
            receiver.body(data, None)
            return
        extra = len(data) - self._left
        if extra < 0:
            self._left -= len(data)
            receiver.body(data, None)
            return
        receiver.body(data[: self._left] if extra else data, None)
        if self.receiver is receiver:
            self._done(extra)

    def _last_chunk(self, receiver: Receiver, data: bytes, end: int) -> None:
        scanner = self._scanner
        assert scanner is not None
        extra = len(data) - end
        receiver.body(data[:end] if extra else data, scanner.take_payload() if self.dechunk else None)
        if self.receiver is receiver:
            self._done(extra)

    def _done(self, extra: int) -> None:
        receiver = self._let_go()
        if extra or not self._reusable:
            self._drop()
        else:
            self.pool.give_back(self)
        assert receiver is not None
        receiver.answered()

    def _fail(self, reason: str) -> None:
        receiver = self._let_go()
        self._drop()
        if receiver is not None:
            receiver.broken(reason)

    def _let_go(self) -> Receiver | None:
        """From here on nothing goes to anybody."""
        receiver, self.receiver = self.receiver, None
        if self._client is not None:
            self._stop()
        return receiver

    def _stop(self) -> None:
        self._client = None
        self._aimed = False
        self._relay.stop()

    def _drop(self) -> None:
        self.closed = True
        self.transport.abort()

    def abandon(self) -> None:
        """Ends the request by ending the connection, which is how an engine learns that nobody listens."""
        self._let_go()
        self._drop()

    def eof_received(self) -> bool:
        """An engine that closes its side is done with the connection."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits is told; a body without a length ends here."""
        self.closed = True
        self.pool.lost(self)
        receiver = self._let_go()
        if receiver is None:
            return
        if self._until_close and exc is None:
            receiver.answered()
        else:
            receiver.broken("it closed the connection" if exc is None else f"{type(exc).__name__}: {exc}")

    def pause_writing(self) -> None:
        """A request body is bounded and held anyway; nothing to do until it is taken."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""
