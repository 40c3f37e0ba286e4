"""The client's side: requests are answered one after the other, in order, and nobody is waited for without bound."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol, cast

from kvcommons_router import sockets
from kvcommons_router.admission import Admission
from kvcommons_router.budgets import Budgets
from kvcommons_router.context import Context
from kvcommons_router.errors import Refusal, render, render_refusal
from kvcommons_router.exchange import Exchange
from kvcommons_router.request import Request
from kvcommons_router.request_reader import RequestReader
from kvcommons_router.settings import LimitSettings

# An answer that comes before the end of its request is followed by this much patience, so that it isn't lost.
LINGER_SECONDS: Final = 2.0
LINGER_BYTES_MAX: Final = 16 * 1024 * 1024
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Service(Protocol):
    """What a connection is served by."""

    @property
    def context(self) -> Context:
        """What all requests share."""

    @property
    def limits(self) -> LimitSettings:
        """How long and how much."""

    @property
    def admission(self) -> Admission:
        """Who refuses early."""

    @property
    def budgets(self) -> Budgets:
        """Where bodies are accounted."""

    def opened(self, connection: ClientConnection) -> bool:
        """A client came; whether there is room."""

    def closed(self, connection: ClientConnection) -> None:
        """A client left."""

    def serve(self, connection: ClientConnection, request: Request) -> None:
        """Answers a request, or sets it on its way."""

    def answered_here(self, request: Request, status: int) -> None:
        """A request was answered by the router itself."""


class ClientConnection(asyncio.Protocol):
    """One client. Requests that come together are answered one after the other, in order."""

    transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._context = service.context
        self._limits = service.limits
        self._budgets = service.budgets
        self._loop_time = service.context.loop_time
        self.exchange: Exchange | None = None
        self.closed = False
        self.fd = -1
        self._reader = RequestReader(service.admission, self._enqueue, self._loop_time)
        self._queue: deque[Request] = deque()
        self._lingering = False  # the last answer has been sent
        self._discarded_bytes = 0
        self._paused = False
        self._deadline = 0.0  # while nothing is under way, or after the last answer
        self._stalled_since = 0.0

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or says that there are too many."""

        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class
        sock = sockets.send_at_once(transport)
        if sock is not None and transport.get_extra_info("ssl_object") is None:
            self.fd = sock.fileno()
        self._deadline = self._loop_time() + self._limits.idle_seconds
        if not self._service.opened(self):
            refusal = Refusal(503, "Too many connections.", retry_after_seconds=1, close=True)
            self._answer_and_close(render_refusal(refusal, request_id=b"", keep_alive=False))

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        if self._reader.deaf:
            self._discard(len(data))
            return
        self._reader.feed(data)
        self._pump()

    def eof_received(self) -> bool:
        """A client that closes its side has left: an answer nobody reads must not keep an engine busy."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of all that this client asked for."""
        self.closed = True
        exchange, self.exchange = self.exchange, None
        self._drop_queue()
        self._reader.close()
        self._service.closed(self)
        if exchange is not None:
            exchange.client_left()

    def pause_writing(self) -> None:
        """The client takes its answer slowly: the engine's bytes wait in the engine's socket."""
        self._stalled_since = self._loop_time()
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        """It goes on."""
        self._stalled_since = 0.0
        if self.exchange is not None:
            self.exchange.resume()

    # The reader's side.

    def _enqueue(self, request: Request) -> None:
        if len(self._queue) >= self._limits.pipelined_max and request.refusal is None:
            self._context.recorder.refused("pipelined")
            self._budgets.release_body(request)
            request.refusal = Refusal(
                429, "Too many requests at once on one connection.", retry_after_seconds=1, close=True
            )
            self._reader.deaf = True
        self._queue.append(request)

    def _drop_queue(self) -> None:
        for request in self._queue:
            self._budgets.release_body(request)
        self._queue.clear()

    # Answers.

    def _pump(self) -> None:
        """Begins the next request, if none is under way."""
        queue, reader = self._queue, self._reader
        while queue and self.exchange is None and not self.closed:
            request = queue.popleft()
            if request.refusal is not None:
                self._budgets.release_body(request)
                self.refuse(request, request.refusal, b"")
            else:
                self._service.serve(self, request)
        if self.closed or self._lingering:
            return
        if reader.expecting and self.exchange is None and not queue:
            reader.expecting = False
            self.transport.write(CONTINUE)
        if bool(queue) != self._paused:
            self._paused = bool(queue)
            if self._paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def refuse(self, request: Request, refusal: Refusal, request_id: bytes) -> None:
        """Answers with an error."""
        self._service.answered_here(request, refusal.status)
        keep = request.keep_alive and not refusal.close and not self._context.draining
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
        self._service.answered_here(request, status)
        keep = request.keep_alive and not self._context.draining
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
        self._deadline = self._loop_time() + self._limits.idle_seconds

    def _answer_and_close(self, answer: bytes) -> None:
        """Sends the last answer; what the client still sends is read and dropped, lest a reset destroys the answer."""
        self._reader.deaf = True
        self._queue.clear()
        self.transport.write(answer)
        if not self._lingering:
            self._lingering = True
            self._deadline = self._loop_time() + LINGER_SECONDS
            if self.transport.can_write_eof():
                self.transport.write_eof()
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    def _discard(self, count: int) -> None:
        self._discarded_bytes += count
        if self._discarded_bytes > LINGER_BYTES_MAX:
            self.transport.abort()

    # The exchange's side.

    def exchange_done(self, *, keep: bool) -> None:
        """An engine's answer has been relayed to its end."""
        self.exchange = None
        if self.closed:
            return
        if not keep or self._context.draining:
            self._reader.deaf = True
            self._drop_queue()
            self.transport.close()
            return
        self._wait_for_next()
        self._go_on()

    def exchange_refused(self, request: Request, refusal: Refusal, request_id: bytes) -> None:
        """A request that was under way is refused by the router itself; the next one may begin."""
        self.exchange = None
        self.refuse(request, refusal, request_id)
        if not self.closed and not self._lingering:
            self._go_on()

    def _go_on(self) -> None:
        if self._queue or self._paused or self._reader.expecting:
            self._pump()

    def cut(self) -> None:
        """Ends an answer that can't be completed so that the client sees that it wasn't."""
        self.exchange = None
        self.transport.abort()

    # The clock's side.

    def check(self, now: float) -> None:
        """Looks at the clock; called about once a second."""
        recorder = self._context.recorder
        if self._lingering:
            if now > self._deadline:
                self.transport.abort()
        elif self.exchange is not None:
            if self._stalled_since and now - self._stalled_since > self._limits.stalled_client_seconds:
                recorder.refused("slow")
                self.transport.abort()
            else:
                self.exchange.check(now)
        elif self._reader.reading:
            if now > self._reader.deadline:
                recorder.refused("slow")
                self._reader.stop(Refusal(408, "The request did not come to its end in time.", close=True))
                self._pump()
        elif now > self._deadline:
            self.transport.close()

    def drain(self) -> None:
        """Closes a connection that has nothing under way."""
        if self.exchange is None and not self._queue and not self._reader.reading and not self._lingering:
            self.transport.close()
