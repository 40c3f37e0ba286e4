"""The header lines of a request: what the router needs of them, what goes on to an engine, what is refused. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import xxhash

from kvcommons_router.errors import Refusal
from kvcommons_router.request import HeadLines
from kvcommons_router.tracing import TRACE_HEADERS

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


PRIORITY_MAX: Final = 8


def read_lines(
    headers: Sequence[tuple[bytes, bytes]], *, http10: bool, drops_authorization: bool, takes_trace: bool = False
) -> HeadLines:
    """Takes what the router needs from header lines, the content length apart.

    :raises Refusal: if they contradict one another, or ask for what is not done here.
    """
    lines = HeadLines()
    kept: list[bytes] = []
    hosts, chunked, named = 0, False, b""
    for name, value in headers:
        name = name.lower()
        if name not in NOT_FORWARDED:
            if name == b"authorization":
                lines.authorization = value
                if drops_authorization:
                    continue
            elif name == b"content-encoding" and value.strip().lower() not in (b"identity", b""):
                raise Refusal(415, "Bodies must be sent without a content encoding.", close=True)
            elif name == b"x-session-id":
                lines.session = xxhash.xxh3_64_intdigest(value)
            elif name == b"x-kvcommons-priority":
                lines.priority = _priority(value)
            elif takes_trace and name in TRACE_HEADERS:
                _take_trace(lines, name, value)
                continue
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
    lines.forwarded = _forwarded(kept, named)
    lines.http10 = http10
    return lines


def _take_trace(lines: HeadLines, name: bytes, value: bytes) -> None:
    if name == b"traceparent":
        lines.traceparent = value if not lines.traceparent else b"twice"  # not to be believed
    else:
        lines.tracestate = lines.tracestate + b"," + value if lines.tracestate else value


def _priority(value: bytes) -> int:
    try:
        priority = int(value)
    except ValueError:
        priority = PRIORITY_MAX + 1
    if abs(priority) > PRIORITY_MAX:
        message = f"X-Kvcommons-Priority must be a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}."
        raise Refusal(400, message, code="invalid_priority", param="X-Kvcommons-Priority")
    return priority


def _forwarded(kept: list[bytes], named: bytes) -> bytes:
    """The lines that go on, without those that the `Connection` header names."""
    if named and named not in (b"keep-alive", b"close"):
        drop = {token.strip() for token in named.split(b",")}
        kept = [line for line in kept if line.partition(b":")[0] not in drop]
    forwarded = b"".join(kept)
    if forwarded.count(b"\n") != len(kept) or forwarded.count(b"\r") != len(kept) or b"\0" in forwarded:
        raise Refusal(400, "A header's value has a line break in it.", code="invalid_http", close=True)
    return forwarded


def content_length(value: bytes) -> int:
    """The value of a `Content-Length` line.

    :raises Refusal: if it is not a number.
    """
    if not value.isdigit() or len(value) > 18:
        raise Refusal(400, "The content length is not a number.", code="invalid_http", close=True)
    return int(value)
