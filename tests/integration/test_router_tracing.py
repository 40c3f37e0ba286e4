"""Traces of requests: whose they are, what the engine hears of them, what their spans say and what they never say."""

import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from index_support import RawClient
from kvcommons_core.settings import IndexSettings
from kvcommons_router.otel import OtelTracing
from kvcommons_router.settings_tracing import TracingSettings
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from otlp_receiver import collecting
from router_process import router as router_process
from router_support import Call, Engine, Router, chat, engines_of, on_uvloop, running, settings_for, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=value"}
SECRET_TEXT = "a text that nobody else may read"


@asynccontextmanager
async def traced(
    engines: list[Engine], *, sample_ratio: float = 1.0, index: IndexSettings | None = None, **more: Any
) -> AsyncIterator[tuple[Router, InMemorySpanExporter]]:
    """A router that traces into memory."""
    async with running(settings_for(engines, index=index, **more)) as router:
        memory = InMemorySpanExporter()
        settings = TracingSettings(endpoint="http://nowhere", sample_ratio=sample_ratio)
        router.app.context.tracing = OtelTracing(settings, SimpleSpanProcessor(memory))
        yield router, memory


async def spans_of(memory: InMemorySpanExporter, count: int) -> dict[str, ReadableSpan]:
    """Waits for so many ended spans; they are named once each."""
    await until(lambda: len(memory.get_finished_spans()) >= count, f"{count} spans")
    found = {span.name: span for span in memory.get_finished_spans()}
    assert len(found) == count
    return found


def words_of(spans: dict[str, ReadableSpan]) -> str:
    """All that spans say."""
    return "".join(span.to_json() for span in spans.values())


def parent_of(call: Call) -> tuple[str, str, str]:
    """Trace, span and flags that an engine was told."""
    _, trace, span, flags = call.headers["traceparent"].split("-")
    return trace, span, flags


@on_uvloop
async def test_a_traced_request_is_one_trace_from_the_client_to_the_engine() -> None:
    """The server's span is the client's child, the engine's caller is the span of the attempt, and the vendor's state goes on."""
    async with engines_of("a") as engines, traced(engines) as (router, memory):
        reply = await router.ask(chat(SECRET_TEXT), headers=SAMPLED | {"Authorization": "Bearer sk-secret"})
        assert reply.status == 200
        spans = await spans_of(memory, 2)
        server, attempt = spans["POST /v1/chat/completions"], spans["chat m"]
        (call,) = engines[0].calls
        assert attempt.context is not None
        assert attempt.parent is not None
        assert server.context is not None
        assert server.parent is not None
        assert f"{server.parent.span_id:016x}" == CALLER
        assert attempt.parent.span_id == server.context.span_id
        assert parent_of(call) == (TRACE, f"{attempt.context.span_id:016x}", "01")
        assert call.headers["tracestate"] == "vendor=value"
        told = call.json["kv_transfer_params"]["kvcommons"]
        assert told["traceparent"] == call.headers["traceparent"]
        assert (server.kind, attempt.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
        assert server.attributes is not None
        assert attempt.attributes is not None
        assert server.attributes["http.response.status_code"] == 200
        assert server.attributes["kvcommons.request_id"] == reply.header("x-request-id")
        expected = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.provider.name": "vllm"}
        assert expected.items() <= dict(server.attributes).items()
        assert expected.items() <= dict(attempt.attributes).items()
        assert attempt.attributes["kvcommons.replica"] == "a"
        assert attempt.attributes["kvcommons.outcome"] == "ok"
        assert float(str(attempt.attributes["gen_ai.response.time_to_first_chunk"])) >= 0
        assert SECRET_TEXT not in words_of(spans)
        assert "sk-secret" not in words_of(spans)
        for key in told["text_keys"]:
            assert key not in words_of(spans)


@on_uvloop
async def test_a_client_decides_whether_its_requests_are_sampled() -> None:
    """A trace that its caller doesn't sample leaves no span, and its name reaches the engine all the same."""
    async with engines_of("a") as engines, traced(engines) as (router, memory):
        await router.ask(chat(), headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
        (call,) = engines[0].calls
        trace, _, flags = parent_of(call)
        assert (trace, flags) == (TRACE, "00")
        assert "traceparent" not in call.json["kv_transfer_params"]["kvcommons"]
        assert memory.get_finished_spans() == ()


@on_uvloop
async def test_of_other_requests_the_share_is_sampled_that_was_set() -> None:
    """With a share of 0 nothing is told of a request that names no trace, and of one that does, everything."""
    async with engines_of("a") as engines, traced(engines, sample_ratio=0.0) as (router, memory):
        await router.ask(chat())
        await router.ask(chat(), headers=SAMPLED)
        await spans_of(memory, 2)
        assert int(parent_of(engines[0].calls[0])[2], 16) & 1 == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "not one"},
        {"traceparent": f"00-{'0' * 32}-{CALLER}-01"},
        {"traceparent": f"00-{TRACE}-{CALLER}-01", "Traceparent": f"00-{TRACE}-{CALLER}-01"},
        {"tracestate": "vendor=value"},
    ],
    ids=["no form", "no trace", "twice", "state alone"],
)
def test_a_caller_that_makes_no_sense_begins_a_new_trace(headers: dict[str, str]) -> None:
    """What is not of W3C's form is no parent, and nothing of it reaches the engine."""

    @on_uvloop
    async def run() -> None:
        async with engines_of("a") as engines, traced(engines) as (router, memory):
            assert (await router.ask(chat(), headers=headers)).status == 200
            spans = await spans_of(memory, 2)
            assert spans["POST /v1/chat/completions"].parent is None
            (call,) = engines[0].calls
            assert parent_of(call)[0] != TRACE
            assert "tracestate" not in call.headers

    run()


@on_uvloop
async def test_each_attempt_has_a_span_of_its_own() -> None:
    """An instance that refuses leaves a span with an error, beside the one that answered."""

    async def away(call: Call) -> None:
        await call.answer(503)

    async with engines_of("a", "b") as engines, traced(engines) as (router, memory):
        engines[0].script = away
        for engine in engines:
            engine.script = away
        reply = await router.ask(chat("x", stream=True))
        assert reply.status in (502, 503)
        await until(lambda: len(memory.get_finished_spans()) == 3, "two attempts and their request")
        attempts = [span for span in memory.get_finished_spans() if span.kind is SpanKind.CLIENT]
        assert {str((span.attributes or {})["kvcommons.replica"]) for span in attempts} == {"a", "b"}
        assert attempts[0].status.status_code is StatusCode.ERROR
        assert (attempts[0].attributes or {})["error.type"] == "refused"
        told = [parent_of(call)[1] for engine in engines for call in engine.calls]
        assert len(set(told)) == 2


@on_uvloop
async def test_a_refused_request_leaves_a_span() -> None:
    """Who asks for a model that nobody serves sees it in the trace."""
    async with engines_of("a") as engines, traced(engines) as (router, memory):
        assert (await router.ask({"model": "other", "messages": []}, headers=SAMPLED)).status == 404
        spans = await spans_of(memory, 1)
        attributes = dict(spans["POST /v1/chat/completions"].attributes or {})
        assert attributes["http.response.status_code"] == 404
        assert "other" not in words_of(spans)


@on_uvloop
async def test_what_an_engine_reports_becomes_spans(index_settings: IndexSettings, raw: RawClient) -> None:
    """A connector's report, after the answer, says what was reused and what took how long; what is malformed in it is left out."""
    async with engines_of("a") as engines, traced(engines, index=index_settings) as (router, memory):
        index: Any = router.app.index
        await until(index.subscribed, "the channel of reports")
        await router.ask(chat("a text with keys " * 200), headers=SAMPLED)
        told = engines[0].calls[0].json["kv_transfer_params"]["kvcommons"]
        report = {
            "request_id": told["request_id"], "prompt_tokens": 900, "own_tokens": 0, "commons_tokens": 512,
            "reason": "What? A prompt!",
            "parts": [["lookup", 1_700_000_000_000_000, 150], ["load", 1_700_000_000_000_200, 2_000], ["x", 1, 1], [], 7],
        }  # fmt: skip
        raw("PUBLISH", f"{index_settings.prefix}fb", json.dumps(report))
        spans = await spans_of(memory, 5)
        reuse = spans["kvcommons.reuse"]
        attempt = spans["chat m"]
        assert reuse.parent == attempt.context
        assert reuse.attributes is not None
        assert reuse.attributes["gen_ai.usage.input_tokens"] == 900
        assert reuse.attributes["gen_ai.usage.cache_read.input_tokens"] == 512
        assert reuse.attributes["kvcommons.miss_reason"] == "other"
        load = spans["kvcommons.connector.load"]
        assert load.parent == reuse.context
        assert load.start_time == 1_700_000_000_000_200_000
        assert load.end_time == load.start_time + 2_000_000
        assert "kvcommons.connector.lookup" in spans


@on_uvloop
async def test_without_tracing_a_clients_trace_goes_on_untouched() -> None:
    """A router that doesn't trace is no hop: the engine's parent is the client."""
    async with engines_of("a") as engines, running(settings_for(engines)) as router:
        await router.ask(chat(), headers=SAMPLED)
        (call,) = engines[0].calls
        assert call.headers["traceparent"] == SAMPLED["traceparent"]
        assert call.headers["tracestate"] == SAMPLED["tracestate"]
        assert "traceparent" not in call.json["kv_transfer_params"]["kvcommons"]


def without_opentelemetry(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`kvcommons router` where OpenTelemetry is not installed; its port is taken, so that it ends."""
    code = "import sys; sys.modules['opentelemetry'] = None; from kvcommons_router.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ["--instance=name=a,url=http://127.0.0.1:1,model=m", *arguments]
    return subprocess.run([sys.executable, "-c", code, *flags], check=False, timeout=60, capture_output=True, text=True)


def test_a_router_that_does_not_trace_needs_no_opentelemetry(tmp_path: Path) -> None:
    """It gets as far as its port without; one that is to trace says what is missing, and how to get it."""
    config = tmp_path / "router.toml"
    config.write_text("[router.tracing]\nendpoint = 'http://127.0.0.1:4318/v1/traces'\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"--listen=127.0.0.1:{taken.getsockname()[1]}"
        assert "router.listen" in without_opentelemetry(listen).stderr
        told = without_opentelemetry(listen, f"--config={config}").stderr
    assert "router.tracing.endpoint" in told
    assert "pip install 'kvcommons[otel]'" in told


@on_uvloop
async def test_a_collector_gets_what_every_worker_tells() -> None:
    """By OTLP over HTTP, from a router of two processes; what still waits is sent when it ends."""
    with collecting() as collector:
        environment = {
            "KVCOMMONS_ROUTER__TRACING__ENDPOINT": collector.endpoint,
            "KVCOMMONS_ROUTER__TRACING__SEND_SECONDS": "300",
        }
        async with (
            engines_of("a") as engines,
            router_process(engines, "--workers=2", environment=environment) as router,
        ):
            await router.healthy()
            client = await router.client()
            assert (await client.ask(chat(SECRET_TEXT), headers=SAMPLED)).status == 200
            client.close()
            router.process.terminate()
            assert await router.ended() == 0
        assert {service for service, _ in collector.spans} == {"kvcommons-router"}
        names = sorted(span.name for _, span in collector.spans)
        assert names == ["POST /v1/chat/completions", "chat m"]
        assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE}
