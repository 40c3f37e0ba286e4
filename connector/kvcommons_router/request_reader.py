"""Reads a client's bytes as HTTP/1.x requests, bounded in size and number."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import httptools

from kvcommons_router.admission import Admission
from kvcommons_router.errors import Refusal
from kvcommons_router.heads import content_length, read_lines
from kvcommons_router.request import NO_LINES, HeadLines, Request

logger = logging.getLogger(__name__)

SWALLOW_BYTES_MAX: Final = 64 * 1024
TARGET_BYTES_MAX: Final = 8 * 1024


class RequestReader:
    """One connection's reader. Requests that are whole, or refused, go to `enqueue` in their order."""

    def __init__(
        self, admission: Admission, enqueue: Callable[[Request], None], loop_time: Callable[[], float]
    ) -> None:
        self._admission = admission
        self._limits = admission.limits
        self._budgets = admission.budgets
        self._enqueue = enqueue
        self._loop_time = loop_time
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None  # the one being read
        self._headers: list[tuple[bytes, bytes]] = []
        self._length = b""
        self._known_headers: list[tuple[bytes, bytes]] | None = None
        self._known = NO_LINES
        self._auth_epoch = 0
        self._heads = admission.heads
        self._raw = b""  # what the parser gets, from the beginning of a request on
        self._left = 0  # bytes still to come of the body of a request whose head is known
        self._header_bytes = 0
        self._in_head = False
        self.deaf = False  # what still comes is not read as requests
        self.expecting = False  # the client waits to be told that it may send the body
        self.deadline = 0.0  # of what is being read now

    @property
    def reading(self) -> bool:
        """Whether a request has begun and not ended."""
        return self._request is not None

    def feed(self, data: bytes) -> None:
        """Takes what came. Requests whose head is known go past the parser, which then stands between two requests."""
        self._raw = b""
        while self._left or self._request is None:
            data = self._take_body(data) if self._left else self._begin_known(data)
            if not data or self.deaf:
                return
            if self._raw:
                break
        self._parse(data)

    def _begin_known(self, data: bytes) -> bytes:
        """Begins a request with a known head; what is left for the next one, or for the parser (then `_raw` is set)."""
        found = self._heads.find(data)
        if found is None:
            self._raw = data
            return data
        head, begin, length = found
        request = Request()
        request.method, request.target, request.path, request.head = head
        try:
            if length > self._limits.body_bytes_max:
                raise Refusal(413, "")
            self._admission.admit_head(request, length)
        except Refusal:
            self._raw = data  # the parser's way says it, and knows how to go on after it
            return data
        self._request = request
        self._left = length
        size = len(data)
        if size - begin == length:  # the rule: it came in one piece
            return self._take_body(data[begin:]) if length else self._whole(request, b"")
        self.deadline = self._loop_time() + self._limits.body_seconds
        if not length:
            return self._whole(request, data[begin:])
        return self._take_body(data[begin:]) if size > begin else b""

    def _take_body(self, data: bytes) -> bytes:
        """A piece of the body of a request with a known head; what is left for the next one."""
        request = self._request
        assert request is not None
        rest = b""
        if len(data) > self._left:
            data, rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        request.body_bytes += len(data)
        try:
            self._budgets.hold_body(request, len(data))
        except Refusal as refusal:
            self._left = 0
            self.stop(refusal)
            return b""
        request.pieces.append(data)
        return rest if self._left else self._whole(request, rest)

    def _whole(self, request: Request, rest: bytes) -> bytes:
        pieces = request.pieces
        request.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        request.pieces = []
        self._pass_on(request)
        return rest

    def _parse(self, data: bytes) -> None:
        if self._in_head:
            self._header_bytes += len(data)
            if self._header_bytes > self._limits.header_bytes_max * 2:
                self.stop(self._too_large_head())
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.stop(Refusal(400, "Only HTTP/1.x is spoken here; nothing to upgrade to.", close=True))
        except httptools.HttpParserCallbackError as error:
            logger.exception("reading a request failed")
            self.stop(Refusal(500, f"Reading the request failed: {error}", close=True))
        except httptools.HttpParserError as error:
            self.stop(Refusal(400, f"This is not a request in HTTP/1.x: {error}", code="invalid_http", close=True))

    def stop(self, refusal: Refusal) -> None:
        """What follows can't be read: the answer to it is the last one."""
        if self.deaf:
            return
        self.deaf = True
        request = self._request or Request()
        request.refusal = refusal
        self._pass_on(request)

    def close(self) -> None:
        """Nothing more comes."""
        if self._request is not None:
            self._budgets.release_body(self._request)
            self._request = None

    # The parser's side.

    def on_message_begin(self) -> None:
        """A head begins; it has so long to end."""
        self._request = Request()
        self._headers = []
        self._length = b""
        self._header_bytes = 0
        self._in_head = True
        self.deadline = self._loop_time() + self._limits.header_seconds

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
        raw, self._raw = self._raw, b""
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
            length = content_length(self._length) if self._length else 0
            request.head = self._lines(request.http10)
            self._admission.admit_head(request, length)
            if (
                self._length
                and raw
                and request.keep_alive
                and version == "1.1"
                and not request.head.expect_continue
                and not request.head.traceparent
            ):
                self._heads.remember(raw, request)
        except Refusal as refusal:
            self._refuse_head(request, refusal)
        self.deadline = self._loop_time() + self._limits.body_seconds
        if request.head.expect_continue and not request.http10 and request.refusal is None:
            self.expecting = True

    def _lines(self, http10: bool) -> HeadLines:
        """A client's requests differ in little but their bodies: what was read from the same lines holds."""
        admission = self._admission
        if (
            self._headers != self._known_headers
            or self._known.http10 is not http10
            or self._auth_epoch != admission.auth.epoch
        ):
            limits = self._limits
            if (
                len(self._headers) > limits.headers_max
                or sum([len(name) + len(value) for name, value in self._headers]) > limits.header_bytes_max
            ):
                raise self._too_large_head()
            self._known = read_lines(
                self._headers,
                http10=http10,
                drops_authorization=admission.drops_authorization,
                takes_trace=admission.takes_trace,
            )
            self._known_headers = self._headers
            self._auth_epoch = admission.auth.epoch
        return self._known

    def _too_large_head(self) -> Refusal:
        self._admission.recorder.refused("headers")
        limits = self._limits
        return Refusal(
            431, f"Headers may have {limits.header_bytes_max} bytes in {limits.headers_max} lines.", close=True
        )

    def _refuse_head(self, request: Request, refusal: Refusal) -> None:
        request.refusal = refusal
        if refusal.close or request.head.expect_continue:
            refusal.close = True
            self.deaf = True
            self._pass_on(request)

    def on_body(self, data: bytes) -> None:
        """A piece of a body."""
        request = self._request
        if request is None:
            return
        request.body_bytes += len(data)
        if request.refusal is not None:
            if request.body_bytes > SWALLOW_BYTES_MAX and not self.deaf:
                request.refusal.close = True
                self.deaf = True
                self._pass_on(request)
            return
        try:
            self._budgets.hold_body(request, len(data))
        except Refusal as refusal:
            request.refusal = refusal
            self.deaf = True
            self._pass_on(request)
            return
        request.pieces.append(data)

    def on_message_complete(self) -> None:
        """A request is whole."""
        request = self._request
        if request is None or self.deaf:
            return
        self.expecting = False
        self._whole(request, b"")

    def _pass_on(self, request: Request) -> None:
        request.received = self._loop_time()
        self._request = None
        self._enqueue(request)
