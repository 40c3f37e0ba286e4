"""Spans of requests by OpenTelemetry's SDK: the server's, one for each instance that was tried, and what engines say they reused.

No span holds a prompt, an answer, a text key, an API key, a salt or a tenant's name. All attributes have few values but the request's id.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kvcommons_router.settings_tracing import TracingSettings
from kvcommons_router.tracing import PARTS, TRACESTATE_BYTES_MAX, Attempt, Part, Trace, stamp, valid_parent

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from kvcommons_router.feedback import Report
    from kvcommons_router.fleet import Instance
    from kvcommons_router.journey import Journey
    from kvcommons_router.request import Request

ATTRIBUTES_MAX: Final = 32
ATTRIBUTE_CHARACTERS_MAX: Final = 256
BATCH_SPANS_MAX: Final = 512
OPERATIONS: Final = {
    b"/v1/chat/completions": "chat",
    b"/v1/completions": "text_completion",
    b"/v1/embeddings": "embeddings",
    b"/v1/responses": "chat",
}
REASON: Final = re.compile("[a-z_]{0,48}")
NS: Final = 1_000_000_000
_propagator: Final = TraceContextTextMapPropagator()


def batches_to(settings: TracingSettings) -> SpanProcessor:
    """Sends spans to the collector from a thread of its own; what OTEL_EXPORTER_OTLP_HEADERS and its kin say is heeded."""
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=settings.timeout_seconds)
    return BatchSpanProcessor(
        exporter,
        max_queue_size=settings.queue_spans_max,
        schedule_delay_millis=settings.send_seconds * 1000,
        max_export_batch_size=min(BATCH_SPANS_MAX, settings.queue_spans_max),
        export_timeout_millis=settings.timeout_seconds * 1000,
    )


class OtelTracing:
    """See `Tracing`. Each worker has its own, made after it was forked: a thread is in it."""

    def __init__(self, settings: TracingSettings, processor: SpanProcessor) -> None:
        self.provider_name = settings.provider_name
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            resource=Resource.create({"service.name": settings.service_name}),
            shutdown_on_exit=False,
            span_limits=SpanLimits(
                max_span_attributes=ATTRIBUTES_MAX, max_span_attribute_length=ATTRIBUTE_CHARACTERS_MAX
            ),
        )
        self._provider.add_span_processor(processor)
        self.tracer: Tracer = self._provider.get_tracer("kvcommons.router")

    def begin(self, journey: Journey) -> Trace:
        """See `Tracing`."""
        request = journey.request
        span = self._server_span(request, time.time_ns())
        if span.is_recording():
            span.set_attribute("kvcommons.request_id", journey.request_id)
            span.set_attribute("gen_ai.request.model", journey.group.model)
            span.set_attribute("gen_ai.request.stream", journey.streaming)
        return OtelTrace(self, span)

    def _server_span(self, request: Request, start_ns: int) -> Span:
        operation = OPERATIONS.get(request.path)
        method = request.method.decode("ascii", "replace")
        attributes: dict[str, str] = {"http.request.method": method}
        name = method
        if operation is not None:  # other paths are clients' own words: not for a span
            route = request.path.decode("ascii")
            name = f"{method} {route}"
            attributes |= {
                "http.route": route,
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": self.provider_name,
            }
        return self.tracer.start_span(
            name, _parent(request), SpanKind.SERVER, attributes, start_time=start_ns, record_exception=False
        )

    def refused(self, request: Request, status: int, seconds: float) -> None:
        """See `Tracing`."""
        now = time.time_ns()
        span = self._server_span(request, now - int(seconds * NS))
        _answered(span, status)
        span.end(now)

    def close(self) -> None:
        """See `Tracing`."""
        self._provider.shutdown()


def _parent(request: Request) -> Context | None:
    """Who asked, where a client says so in a form that can be believed."""
    given = request.head.traceparent
    if not valid_parent(given):
        return None
    carrier = {"traceparent": given.decode("ascii")}
    state = request.head.tracestate
    if state and len(state) <= TRACESTATE_BYTES_MAX and state.isascii():
        carrier["tracestate"] = state.decode("ascii")
    return _propagator.extract(carrier)


def _answered(span: Span, status: int) -> None:
    if not span.is_recording():
        return
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(Status(StatusCode.ERROR))


def _parent_line(context: SpanContext) -> bytes:
    return b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)


class OtelTrace:
    """See `Trace`."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: OtelTracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    def sent(self, journey: Journey, instance: Instance) -> Attempt:
        """See `Trace`."""
        span = self._span
        if not span.is_recording():
            return OtelAttempt(self._tracing, span, sampled=False)
        operation = OPERATIONS.get(journey.request.path, "forward")
        settings = instance.settings
        attributes: dict[str, str | int | bool] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": self._tracing.provider_name,
            "gen_ai.request.model": journey.group.model,
            "gen_ai.request.stream": journey.streaming,
            "server.address": settings.host,
            "server.port": settings.port,
            "kvcommons.replica": instance.name,
            "kvcommons.attempt": journey.attempts,
            "kvcommons.prompt_tokens_estimated": journey.length,
            "kvcommons.reused_tokens_predicted": journey.hit.peer,
        }
        if settings.node:
            attributes["kvcommons.node"] = settings.node
        started = self._tracing.tracer.start_span(
            f"{operation} {journey.group.model}",
            set_span_in_context(span),
            SpanKind.CLIENT,
            attributes,
            record_exception=False,
        )
        return OtelAttempt(self._tracing, started, sampled=True)

    def waited(self, seconds: float) -> None:
        """See `Trace`."""
        if self._span.is_recording():
            now = time.time_ns()
            span = self._tracing.tracer.start_span(
                "kvcommons.queue", set_span_in_context(self._span), start_time=now - int(seconds * NS)
            )
            span.end(now)

    def ended(self, journey: Journey) -> None:
        """See `Trace`."""
        span = self._span
        if span.is_recording():
            span.set_attribute("kvcommons.attempts", journey.attempts)
            _answered(span, journey.status)
            span.end()


class OtelAttempt:
    """See `Attempt`. One of a request that is not sampled only passes on who asked."""

    __slots__ = ("_first_ns", "_sampled", "_sent_ns", "_span", "_traceparent", "_tracing", "head_lines")

    def __init__(self, tracing: OtelTracing, span: Span, *, sampled: bool) -> None:
        self._tracing = tracing
        self._span = span
        self._sampled = sampled
        self._sent_ns = time.time_ns()
        self._first_ns = 0
        context = span.get_span_context()
        self._traceparent = _parent_line(context)
        state = context.trace_state.to_header().encode("ascii")
        self.head_lines = b"traceparent: %b\r\n" % self._traceparent
        if state:
            self.head_lines += b"tracestate: %b\r\n" % state

    def stamped(self, end: bytes) -> bytes:
        """See `Attempt`."""
        return stamp(end, self._traceparent) if self._sampled else end

    def ended(self, outcome: str, status: int, first_byte_seconds: float | None) -> None:
        """See `Attempt`."""
        span = self._span
        if not self._sampled:
            return
        if first_byte_seconds is not None:
            self._first_ns = self._sent_ns + int(first_byte_seconds * NS)
            span.set_attribute("gen_ai.response.time_to_first_chunk", first_byte_seconds)
        if status:
            span.set_attribute("http.response.status_code", status)
        span.set_attribute("kvcommons.outcome", outcome)
        if outcome not in ("ok", "cancelled"):
            span.set_attribute("error.type", outcome)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def reused(self, report: Report, parts: list[Part]) -> None:
        """See `Attempt`."""
        if not self._sampled:
            return
        tracer, context = self._tracing.tracer, set_span_in_context(self._span)
        span = tracer.start_span(
            "kvcommons.reuse",
            context,
            SpanKind.INTERNAL,
            {
                "gen_ai.usage.input_tokens": report.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": report.own_tokens + report.commons_tokens,
                "kvcommons.own_tokens": report.own_tokens,
                "kvcommons.commons_tokens": report.commons_tokens,
                "kvcommons.miss_reason": report.reason if REASON.fullmatch(report.reason) else "other",
            },
            start_time=self._sent_ns,
        )
        within = set_span_in_context(span)
        for part in parts:
            start = part.start_us * 1000
            tracer.start_span(PARTS[part.name], within, start_time=start).end(start + int(part.seconds * NS))
        span.end(self._first_ns or None)
