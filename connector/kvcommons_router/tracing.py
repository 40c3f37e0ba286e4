"""The seam to OpenTelemetry: what a request's way tells of itself. Nothing of OpenTelemetry is imported here; `otel.py` does that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from kvcommons_core.errors import ConfigurationError

from kvcommons_router.settings_tracing import TracingSettings

if TYPE_CHECKING:  # these hold what is here
    from kvcommons_router.feedback import Report
    from kvcommons_router.fleet import Instance
    from kvcommons_router.journey import Journey
    from kvcommons_router.request import Request

TRACE_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})
TRACESTATE_BYTES_MAX: Final = 512  # W3C: the least that everybody must pass on
PARTS_MAX: Final = 8
PARTS: Final = {
    "lookup": "kvcommons.connector.lookup",
    "fetch": "kvcommons.node.fetch",
    "load": "kvcommons.connector.load",
    "store": "kvcommons.connector.store",
}
"""What an engine's connector measures of a traced request, and the names of the spans."""
PART_SECONDS_MAX: Final = 3600
_PARAMS: Final = b'"kv_transfer_params":{"kvcommons":{"v":1,'
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Attempt(Protocol):
    """A request at one instance."""

    head_lines: bytes
    """Header lines that the engine gets."""

    def stamped(self, end: bytes) -> bytes:
        """The end of a body, with the trace for the connector in it."""

    def ended(self, outcome: str, status: int, first_byte_seconds: float | None) -> None:
        """It is over. `first_byte_seconds`: since it was sent; None: none came."""

    def reused(self, report: Report, parts: list[Part]) -> None:
        """The engine has said what it reused, mostly some time after the end."""


class Trace(Protocol):
    """A request, from its last byte to its answer's."""

    def sent(self, journey: Journey, instance: Instance) -> Attempt:
        """It is sent to an instance."""

    def waited(self, seconds: float) -> None:
        """It has waited so long in the router, until now."""

    def ended(self, journey: Journey) -> None:
        """It is over, with `journey.status`."""


class Tracing(Protocol):
    """Of a worker."""

    def begin(self, journey: Journey) -> Trace:
        """A request is under way."""

    def refused(self, request: Request, status: int, seconds: float) -> None:
        """A request was refused before it was under way."""

    def close(self) -> None:
        """Sends what waits, within the settings' `timeout_seconds`, and ends. Blocks."""


class Part:
    """A measured part of a request's time in the engine."""

    __slots__ = ("name", "seconds", "start_us")

    def __init__(self, name: str, start_us: int, seconds: float) -> None:
        self.name = name
        self.start_us = start_us
        """In Unix time, by the engine's clock."""
        self.seconds = seconds


def parts_of(told: object) -> list[Part]:
    """What a report says of them; engines are not trusted, so what is malformed is left out."""
    found: list[Part] = []
    for one in told[:PARTS_MAX] if isinstance(told, list) else ():
        if not isinstance(one, list) or len(one) != 3 or one[0] not in PARTS:
            continue
        start_us, took_us = one[1:]
        whole = type(start_us) is int and type(took_us) is int
        if whole and 0 < start_us < 1 << 53 and 0 <= took_us <= PART_SECONDS_MAX * 1_000_000:
            found.append(Part(one[0], start_us, took_us / 1e6))
    return found


def valid_parent(value: bytes) -> bool:
    """Whether a `traceparent` has the form that W3C gives it."""
    return _TRACEPARENT.fullmatch(value) is not None


def stamp(end: bytes, traceparent: bytes) -> bytes:
    """The router's own end of a body with a trace in what it says to the connector; unchanged where it says nothing."""
    return end.replace(_PARAMS, b'%b"traceparent":"%b",' % (_PARAMS, traceparent), 1)


def check_tracing(settings: TracingSettings) -> None:
    """Whether what tracing needs is there.

    :raises ConfigurationError: if not.
    """
    if settings.endpoint:
        try:
            import kvcommons_router.otel  # noqa: F401 - now, rather than in each worker
        except ImportError as error:
            remedy = f"needs OpenTelemetry's SDK: pip install 'kvcommons[otel]' ({error})"
            raise ConfigurationError("router.tracing.endpoint", settings.endpoint, remedy) from error


def make_tracing(settings: TracingSettings) -> Tracing | None:
    """The tracing of the settings; None while it is off.

    :raises ConfigurationError: if what it needs is not installed.
    """
    if not settings.endpoint:
        return None
    check_tracing(settings)
    from kvcommons_router import otel

    return otel.OtelTracing(settings, otel.batches_to(settings))
