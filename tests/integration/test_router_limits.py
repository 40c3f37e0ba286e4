"""What a router refuses, and how it says so."""

import asyncio
from typing import Any

import pytest
from router_support import Call, Router, chat, engines_of, on_uvloop, request, running, settings_for, until

SMALL = {
    "body_bytes_max": 20_000,
    "bodies_bytes_max": 30_000,
    "header_bytes_max": 2_000,
    "headers_max": 20,
    "pipelined_max": 4,
}


@pytest.mark.parametrize(
    ("raw", "status", "words"),
    [
        (b"hello\r\n\r\n", 400, "HTTP/1.x"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host"),
        (b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", 404, "/nothing"),
        (b"GET /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n", 405, "POST"),
        (b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405, "GET"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 3000 + b"\r\n\r\n", 431, "2000 bytes"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 30 + b"\r\n", 431, "20 lines"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "target"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: y\n z\r\n\r\n", 400, ""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400, "upgrade"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0",
            400,
            "",
        ),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400, ""),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400, ""),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, ""),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 0, ""),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 5\r\n\r\n", 417, "100-continue"),
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
            415,
            "encoding",
        ),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n", 413, "20000 bytes"),
    ],
)
@on_uvloop
async def test_a_bad_request_is_refused_and_reaches_no_engine(raw: bytes, status: int, words: str) -> None:
    """Contradictory, oversized or foreign requests end at the router, with an error that says why; what follows on the
    connection is not taken for another request."""
    async with engines_of("a") as engines, running(settings_for(engines, limits=SMALL)) as router:
        client = await router.client()
        await client.send(raw + b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n" * (status not in (404, 405)))
        reply = await client.reply()
        assert reply.status == status or (status == 0 and reply.status in (400, 501))
        assert words in reply.error["message"]
        if status not in (404, 405):
            assert reply.header("connection") == "close"
            assert await client.closed() == b""
        assert not engines[0].calls


@on_uvloop
async def test_a_body_in_chunks_is_bounded_too() -> None:
    """413 as soon as the chunks are too many, though no length was said."""
    async with engines_of("a") as engines, running(settings_for(engines, limits=SMALL)) as router:
        client = await router.client()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head + b"1000\r\n" + b"x" * 4096 + b"\r\n")
        for _ in range(5):
            await client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        reply = await client.reply()
        assert reply.status == 413
        assert router.app.cells.total(router.app.layout.body_bytes) == 0


@on_uvloop
async def test_a_chunked_body_is_forwarded_whole() -> None:
    """The engine gets one body with a length, whatever framing the client used."""
    async with engines_of("a") as engines, running(settings_for(engines)) as router:
        client = await router.client()
        await client.send(
            b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'9;e=1\r\n{"model":\r\n13\r\n"m","prompt":"hi"}\r\n0\r\nT: 1\r\n\r\n'.replace(b"13\r\n", b"12\r\n")
        )
        assert (await client.reply()).status == 200
        assert engines[0].calls[0].head.startswith(b"POST /v1/completions?x=1 HTTP/1.1\r\n")
        assert engines[0].calls[0].json["prompt"] == "hi"


@on_uvloop
async def test_a_client_may_wait_for_100_continue() -> None:
    """The go-ahead comes before the body; a request that would be refused gets its refusal instead."""
    async with engines_of("a") as engines, running(settings_for(engines, limits=SMALL)) as router:
        raw = request(chat(), headers={"Expect": "100-continue"})
        head, _, body = raw.partition(b"\r\n\r\n")
        client = await router.client()
        await client.send(head + b"\r\n\r\n")
        assert (await client.head()).status == 100
        await client.send(body)
        assert (await client.reply()).status == 200
        late = await router.client()
        await late.send(head.replace(b"Content-Length: ", b"Content-Length: 9999") + b"\r\n\r\n")
        assert (await late.reply()).status == 413


@on_uvloop
async def test_bodies_are_bounded_together() -> None:
    """Bodies half sent on many connections can't take all the memory: 503 with Retry-After, and it is given back."""
    async with engines_of("a") as engines, running(settings_for(engines, limits=SMALL)) as router:
        raw = request(chat("x" * 15_000))
        first = await router.client()
        await first.send(raw[:-10])
        second = await router.client()
        await second.send(raw[:14_000])
        await asyncio.sleep(0.05)
        third = await router.client()
        await third.send(raw)
        replies = [await client.reply() for client in (third,)]
        assert replies[0].status == 503
        assert replies[0].header("retry-after") == "1"
        await first.send(raw[-10:])
        assert (await first.reply()).status == 200
        second.close()
        await until(lambda: shown(router, "body_bytes") == 0, "the bodies to be given back")


def shown(router: Router, name: str) -> float:
    """A gauge, brought up to date."""
    router.app.show()
    return router.count(name)


@on_uvloop
async def test_a_client_that_sends_a_head_slowly_is_timed_out() -> None:
    """408 for a head or a body that takes too long; an idle connection is closed without a word."""
    times = {"header_seconds": 0.2, "body_seconds": 0.2, "idle_seconds": 0.2}
    async with engines_of("a") as engines, running(settings_for(engines, limits=times)) as router:
        slow_head, slow_body, idle = [await router.client() for _ in range(3)]
        await slow_head.send(b"GET /health HT")
        await slow_body.send(request(chat())[:-5])
        assert (await slow_head.reply()).status == 408
        assert (await slow_body.reply()).status == 408
        assert await idle.closed() == b""
        assert router.count("refusals_total", limit="slow") == 2


async def hold(call: Call) -> None:
    """An engine that keeps its requests until they are given up."""
    await call.gone.wait()


@pytest.mark.parametrize("limit", ["requests_max", "tenant_requests_max"])
@on_uvloop
async def test_too_many_requests_at_once_are_told_to_come_back(limit: str) -> None:
    """429 with Retry-After in OpenAI's shape, and a free place is given again."""
    async with engines_of("a") as engines:
        engines[0].script = hold
        async with running(settings_for(engines, limits={limit: 3})) as router:
            clients = [await router.client() for _ in range(3)]
            for client in clients:
                await client.send(request(chat()))
            await until(lambda: len(engines[0].calls) == 3, "three requests at the engine")
            reply = await router.ask(chat())
            assert reply.status == 429
            assert reply.header("retry-after") == "1"
            assert reply.error["type"] == "rate_limit_error"
            clients[0].close()
            await until(lambda: any(call.gone.is_set() for call in engines[0].calls), "a place")
            last = await router.client()
            await last.send(request(chat()))
            await until(lambda: len(engines[0].calls) == 4, "the next request at the engine")


@on_uvloop
async def test_connections_are_bounded() -> None:
    """One connection too many is told so and closed."""
    async with engines_of("a") as engines, running(settings_for(engines, limits={"connections_max": 2})) as router:
        kept = [await router.client() for _ in range(2)]
        for client in kept:
            assert (await client.ask(chat())).status == 200
        extra = await router.client()
        assert (await extra.reply()).status == 503
        assert await extra.closed() == b""
        assert (await kept[0].ask(chat())).status == 200


@on_uvloop
async def test_a_flood_on_one_connection_is_bounded() -> None:
    """Requests piled up beyond the limit on one connection get a 429, and the connection ends."""
    async with engines_of("a") as engines, running(settings_for(engines, limits=SMALL)) as router:
        client = await router.client()
        await client.send(request(b"", path="/v1/models", method="GET") * 200)
        statuses = []
        while True:
            reply = await client.reply()
            statuses.append(reply.status)
            if reply.header("connection") == "close":
                break
        assert statuses[-1] == 429
        assert set(statuses[:-1]) <= {200}
        assert len(statuses) < 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        ({"messages": [], "model": 5}, 400, "invalid_model"),
        ({"messages": [], "model": "other"}, 404, "model_not_found"),
        ({"model": "m", "vllm_xargs": {"kv_transfer_params": 1}}, 400, None),
    ],
)
@on_uvloop
async def test_a_bad_body_is_named_and_the_connection_stays(body: Any, status: int, code: str | None) -> None:
    """The error says what is wrong; the same connection serves the next request."""
    async with engines_of("a") as engines, running(settings_for(engines)) as router:
        client = await router.client()
        reply = await client.ask(body)
        assert (reply.status, reply.error["code"]) == (status, code)
        assert reply.header("x-request-id")
        assert (await client.ask(chat())).status == 200


@on_uvloop
async def test_models_and_health_are_answered_here() -> None:
    """Every served name is listed once, each can be asked for, and HEAD gets no body."""
    async with engines_of("a", "b") as engines, running(settings_for(engines), checks=True) as router:
        client = await router.client()
        listed = await client.ask(b"", path="/v1/models", method="GET")
        assert [model["id"] for model in listed.json["data"]] == ["m"]
        assert (await client.ask(b"", path="/v1/models/m", method="GET")).json["id"] == "m"
        assert (await client.ask(b"", path="/v1/models/x", method="GET")).status == 404
        await until(lambda: router.app.health_report()[0] == 200, "the engines to be up")
        await client.send(request(b"", path="/health", method="HEAD"))
        assert (await client.reply(head_only=True)).status == 200
        health = await client.ask(b"", path="/health", method="GET")
        assert health.json["models"] == {"m": {"instances": 2, "up": 2}}
        metrics = await client.ask(b"", path="/metrics", method="GET")
        assert b'kvcommons_router_instance_up{replica="a"} 1' in metrics.body


@on_uvloop
async def test_the_metrics_are_valid_for_prometheus() -> None:
    """Prometheus' own parser reads every family, and each has its help."""
    from prometheus_client.parser import text_string_to_metric_families

    async with engines_of("a") as engines, running(settings_for(engines)) as router:
        for number in range(3):
            await router.ask(chat(f"x {number}"))
        text = (await router.ask(b"", path="/metrics", method="GET")).body.decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert all(family.documentation and name.startswith("kvcommons_router_") for name, family in families.items())
        requests = families["kvcommons_router_requests"].samples
        assert {tuple(s.labels.values()): s.value for s in requests} == {("m", "200"): 3.0}
        histogram = families["kvcommons_router_request_seconds"]
        assert histogram.type == "histogram"
        assert [s.value for s in histogram.samples if s.name.endswith("_count")] == [3.0]
        assert next(s.value for s in families["kvcommons_router_connections"].samples) == 1.0
