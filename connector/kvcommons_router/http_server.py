"""The client's side: HTTP/1.x requests in, bounded in size, number and time; their answers out, in order."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from kvcommons_router.errors import Refusal, render, render_refusal

if TYPE_CHECKING:
    from kvcommons_router.app import App
    from kvcommons_router.exchange import Exchange

logger = logging.getLogger(__name__)

# An answer that comes before the end of its request is followed by this much patience, so that it isn't lost.
LINGER_SECONDS: Final = 2.0
LINGER_BYTES_MAX: Final = 16 * 1024 * 1024
SWALLOW_BYTES_MAX: Final = 64 * 1024
TARGET_BYTES_MAX: Final = 8 * 1024
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
# Not sent on to an engine: what belongs to one connection, what the router says itself, and the key to the router.
NOT_FORWARDED: Final = frozenset(
    {
        b"host",
        b"connection",
        b"content-length",
        b"transfer-encoding",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"x-request-id",
        b"x-data-parallel-rank",
    }
)


class HeadLines:
    """What the header lines of a request say, its length apart."""

    __slots__ = ("authorization", "expect_continue", "forwarded", "http10")

    def __init__(self) -> None:
        self.authorization: bytes | None = None
        self.expect_continue = False
        self.forwarded = b""
        self.http10 = False


NO_LINES: Final = HeadLines()


class Request:
    """One request as it came."""

    __slots__ = (
        "body",
        "body_bytes",
        "head",
        "http10",
        "keep_alive",
        "method",
        "path",
        "pieces",
        "received",
        "refusal",
        "target",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.http10 = False
        self.keep_alive = True
        self.path = b""
        self.head = NO_LINES
        self.pieces: list[bytes] = []
        self.body = b""
        self.body_bytes = 0
        self.received = 0.0
        self.refusal: Refusal | None = None


class ClientConnection(asyncio.Protocol):
    """One client. Requests that come together are answered one after the other, in order."""

    transport: asyncio.Transport

    def __init__(self, app: App) -> None:
        self.app = app
        self.limits = app.settings.limits
        self.exchange: Exchange | None = None
        self.closed = False
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._request: Request | None = None  # the one being read
        self._headers: list[tuple[bytes, bytes]] = []
        self._length = b""
        self._known_headers: list[tuple[bytes, bytes]] | None = None
        self._known = NO_LINES
        self._auth_epoch = 0
        self._header_bytes = 0
        self._in_head = False
        self._deaf = False  # what still comes is not read as requests
        self._lingered = -1
        self._paused = False
        self._expecting = False
        self.deadline = 0.0
        self._slow = False
        self.stalled_since = 0.0

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or says that there are too many."""

        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.deadline = self.app.loop_time() + self.limits.idle_seconds
        if not self.app.opened(self):
            refusal = Refusal(503, "Too many connections.", retry_after_seconds=1, close=True)
            self._answer_and_close(render_refusal(refusal, request_id=b"", keep_alive=False))

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        if self._deaf:
            self._discard(len(data))
            return
        if self._in_head:
            self._header_bytes += len(data)
            if self._header_bytes > self.limits.header_bytes_max * 2:
                self._stop(self._too_large_head())
                self._pump()
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._stop(Refusal(400, "Only HTTP/1.x is spoken here; nothing to upgrade to.", close=True))
        except httptools.HttpParserCallbackError as error:
            logger.exception("reading a request failed")
            self._stop(Refusal(500, f"Reading the request failed: {error}", close=True))
        except httptools.HttpParserError as error:
            self._stop(Refusal(400, f"This is not a request in HTTP/1.x: {error}", code="invalid_http", close=True))
        self._pump()

    def eof_received(self) -> bool:
        """A client that closes its side has left: an answer nobody reads must not keep an engine busy."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of all that this client asked for."""
        self.closed = True
        exchange, self.exchange = self.exchange, None
        for request in self._queue:
            self.app.release_body(request)
        self._queue.clear()
        if self._request is not None:
            self.app.release_body(self._request)
            self._request = None
        self.app.closed(self)
        if exchange is not None:
            exchange.client_left()

    def pause_writing(self) -> None:
        """The client takes its answer slowly: the engine's bytes wait in the engine's socket."""
        self.stalled_since = self.app.loop_time()
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        """It goes on."""
        self.stalled_since = 0.0
        if self.exchange is not None:
            self.exchange.resume()

    # The parser's side.

    def on_message_begin(self) -> None:
        """A head begins; it has so long to end."""
        self._request = Request()
        self._headers = []
        self._length = b""
        self._header_bytes = 0
        self._in_head = True
        self._slow = True
        self.deadline = self.app.loop_time() + self.limits.header_seconds

    def on_url(self, url: bytes) -> None:
        """The target, perhaps in pieces."""
        if self._request is not None and len(self._request.target) <= TARGET_BYTES_MAX:
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line; the one that differs from request to request is kept apart."""
        if len(name) == 14 and name.lower() == b"content-length":
            self._length = value if not self._length else b"twice"
        else:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there: what can be said now is said before the body comes."""
        request = self._request
        if request is None:
            return
        self._in_head = False
        parser = self._parser
        request.method = parser.get_method()
        version = parser.get_http_version()
        request.http10 = version == "1.0"
        request.keep_alive = parser.should_keep_alive()
        if request.target[:7].lower() == b"http://":  # the form for proxies: its authority says nothing here
            request.target = b"/" + request.target[7:].partition(b"/")[2]
        request.path = request.target.partition(b"?")[0]
        try:
            if version not in ("1.1", "1.0"):
                raise Refusal(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.", close=True)
            if parser.should_upgrade() or request.method == b"CONNECT":
                raise Refusal(400, "Only HTTP/1.x is spoken here; there is nothing to upgrade to.", close=True)
            if len(request.target) > TARGET_BYTES_MAX:
                raise Refusal(431, "The target is too long.", close=True)
            length = _content_length(self._length) if self._length else 0
            # A client's requests differ in little but their bodies: what was read from the same lines holds.
            if (
                self._headers != self._known_headers
                or self._known.http10 is not request.http10
                or self._auth_epoch != self.app.auth.epoch
            ):
                self._known = self._read_head(request.http10)
                self._known_headers = self._headers
                self._auth_epoch = self.app.auth.epoch
            request.head = self._known
            self.app.admit_head(request, length)
        except Refusal as refusal:
            self._refuse_head(request, refusal)
        self.deadline = self.app.loop_time() + self.limits.body_seconds
        if request.head.expect_continue and not request.http10 and request.refusal is None:
            self._expecting = True

    def _read_head(self, http10: bool) -> HeadLines:
        """Takes what the router needs from the headers."""
        limits = self.limits
        if (
            len(self._headers) > limits.headers_max
            or sum([len(name) + len(value) for name, value in self._headers]) > limits.header_bytes_max
        ):
            raise self._too_large_head()
        lines = HeadLines()
        kept: list[bytes] = []
        hosts, chunked, named = 0, False, b""
        for name, value in self._headers:
            name = name.lower()
            if name not in NOT_FORWARDED:
                if name == b"authorization":
                    lines.authorization = value
                    if self.app.drops_authorization:
                        continue
                elif name == b"content-encoding" and value.strip().lower() not in (b"identity", b""):
                    raise Refusal(415, "Bodies must be sent without a content encoding.", close=True)
                kept.append(b"%b: %b\r\n" % (name, value))
            elif name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                if value.strip().lower() != b"chunked" or chunked:
                    raise Refusal(501, "Only the transfer encoding `chunked` is understood.", close=True)
                chunked = True
            elif name == b"connection":
                named = named + b"," + value.lower() if named else value.lower()
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    raise Refusal(417, "Only the expectation `100-continue` can be met.", close=True)
                lines.expect_continue = True
        if hosts != 1 and not (http10 and hosts == 0):
            raise Refusal(400, "A request needs exactly one Host header.", code="invalid_http", close=True)
        if named and named not in (b"keep-alive", b"close"):
            drop = {token.strip() for token in named.split(b",")}
            kept = [line for line in kept if line.partition(b":")[0] not in drop]
        forwarded = b"".join(kept)
        if forwarded.count(b"\n") != len(kept) or forwarded.count(b"\r") != len(kept) or b"\0" in forwarded:
            raise Refusal(400, "A header's value has a line break in it.", code="invalid_http", close=True)
        lines.forwarded = forwarded
        lines.http10 = http10
        return lines

    def _too_large_head(self) -> Refusal:
        self.app.recorder.refused("headers")
        limits = self.limits
        return Refusal(
            431, f"Headers may have {limits.header_bytes_max} bytes in {limits.headers_max} lines.", close=True
        )

    def _refuse_head(self, request: Request, refusal: Refusal) -> None:
        request.refusal = refusal
        if refusal.close or request.head.expect_continue:
            refusal.close = True
            self._deaf = True
            self._enqueue(request)

    def on_body(self, data: bytes) -> None:
        """A piece of a body."""
        request = self._request
        if request is None:
            return
        request.body_bytes += len(data)
        if request.refusal is not None:
            if request.body_bytes > SWALLOW_BYTES_MAX and not self._deaf:
                request.refusal.close = True
                self._deaf = True
                self._enqueue(request)
            return
        try:
            self.app.hold_body(request, len(data))
        except Refusal as refusal:
            request.refusal = refusal
            self._deaf = True
            self._enqueue(request)
            return
        request.pieces.append(data)

    def on_message_complete(self) -> None:
        """A request is whole."""
        request = self._request
        if request is None or self._deaf:
            return
        self._expecting = False
        self._slow = False
        self.deadline = 0.0
        pieces = request.pieces
        request.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        request.pieces = []
        if len(self._queue) >= self.limits.pipelined_max:
            self.app.recorder.refused("pipelined")
            self.app.release_body(request)
            request.refusal = Refusal(
                429, "Too many requests at once on one connection.", retry_after_seconds=1, close=True
            )
            self._deaf = True
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        request.received = self.app.loop_time()
        self._request = None
        self._queue.append(request)

    # Answers.

    def _stop(self, refusal: Refusal) -> None:
        """What follows can't be read: the answer to it is the last one."""
        if self._deaf:
            return
        self._deaf = True
        request = self._request or Request()
        self._request = None
        request.refusal = refusal
        request.received = self.app.loop_time()
        self._queue.append(request)

    def _pump(self) -> None:
        """Begins the next request, if none is under way."""
        queue = self._queue
        while queue and self.exchange is None and not self.closed:
            request = queue.popleft()
            if request.refusal is not None:
                self.app.release_body(request)
                self.refuse(request, request.refusal, b"")
            else:
                self.app.serve(self, request)
        if self.closed or self._lingered >= 0:
            return
        if self._expecting and self.exchange is None and not queue:
            self._expecting = False
            self.transport.write(CONTINUE)
        if bool(queue) != self._paused:
            self._paused = bool(queue)
            if self._paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def refuse(self, request: Request, refusal: Refusal, request_id: bytes) -> None:
        """Answers with an error."""
        self.app.answered_here(request, refusal.status)
        keep = request.keep_alive and not refusal.close and not self.app.draining
        answer = render_refusal(
            refusal,
            request_id=request_id,
            keep_alive=keep,
            http10=request.http10,
            head_only=request.method == b"HEAD",
        )
        self._finish(answer, keep=keep)

    def respond(self, request: Request, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """Answers with something of the router's own."""
        self.app.answered_here(request, status)
        keep = request.keep_alive and not self.app.draining
        answer = render(
            status,
            body,
            content_type=content_type,
            keep_alive=keep,
            http10=request.http10,
            head_only=request.method == b"HEAD",
        )
        self._finish(answer, keep=keep)

    def _finish(self, answer: bytes, *, keep: bool) -> None:
        if keep:
            self.transport.write(answer)
            self._wait_for_next()
        else:
            self._answer_and_close(answer)

    def _wait_for_next(self) -> None:
        if self._request is None and not self._queue:
            self._slow = False
            self.deadline = self.app.loop_time() + self.limits.idle_seconds

    def _answer_and_close(self, answer: bytes) -> None:
        """Sends the last answer; what the client still sends is read and dropped, lest a reset destroys the answer."""
        self._deaf = True
        self._queue.clear()
        self.transport.write(answer)
        if self._lingered < 0:
            self._lingered = 0
            self.deadline = self.app.loop_time() + LINGER_SECONDS
            if self.transport.can_write_eof():
                self.transport.write_eof()
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    def _discard(self, count: int) -> None:
        self._lingered = max(0, self._lingered) + count
        if self._lingered > LINGER_BYTES_MAX:
            self.transport.abort()

    def exchange_done(self, *, keep: bool) -> None:
        """An engine's answer has been relayed to its end."""
        self.exchange = None
        if self.closed:
            return
        if not keep or self.app.draining:
            self._deaf = True
            for request in self._queue:
                self.app.release_body(request)
            self._queue.clear()
            self.transport.close()
            return
        self._wait_for_next()
        if self._queue or self._expecting or self._paused:
            self._pump()

    def exchange_refused(self) -> None:
        """A request that was under way has been refused by the router itself; the next one may begin."""
        if not self.closed and self._lingered < 0 and (self._queue or self._expecting or self._paused):
            self._pump()

    def cut(self) -> None:
        """Ends an answer that can't be completed so that the client sees that it wasn't."""
        self.exchange = None
        self.transport.abort()

    def check(self, now: float) -> None:
        """Looks at the clock; called about once a second."""
        if self._lingered >= 0:
            if now > self.deadline:
                self.transport.abort()
            return
        if self.exchange is not None:
            if self.stalled_since and now - self.stalled_since > self.limits.stalled_client_seconds:
                self.app.recorder.refused("slow")
                self.transport.abort()
            else:
                self.exchange.check(now)
            return
        if self.deadline and now > self.deadline:
            if self._slow:
                self.app.recorder.refused("slow")
                self._stop(Refusal(408, "The request did not come to its end in time.", close=True))
                self._pump()
            else:
                self.transport.close()

    def drain(self) -> None:
        """Closes a connection that has nothing under way."""
        if self.exchange is None and not self._queue and self._request is None and self._lingered < 0:
            self.transport.close()


def _content_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise Refusal(400, "The content length is not a number.", code="invalid_http", close=True)
    return int(value)
