"""A request as it came from a client."""

from __future__ import annotations

from typing import Final

from kvcommons_router.errors import Refusal


class HeadLines:
    """What the header lines of a request say, its length apart."""

    __slots__ = (
        "authorization",
        "expect_continue",
        "forwarded",
        "http10",
        "priority",
        "session",
        "traceparent",
        "tracestate",
    )

    def __init__(self) -> None:
        self.authorization: bytes | None = None
        self.expect_continue = False
        self.forwarded = b""
        self.http10 = False
        self.priority = 0
        self.session = 0  # a hash of it; 0 for none
        self.traceparent = b""  # where requests are traced here; else it goes on as any other line
        self.tracestate = b""


NO_LINES: Final = HeadLines()


class Request:
    """One request; its body is held, and counted, until an engine has answered."""

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
