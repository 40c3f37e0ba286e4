"""Requests in, answers out: what is relayed, in which bytes, and what happens when one side goes away."""

import asyncio
import functools
import random

import pytest
from router_support import Call, Engine, Router, chat, engines_of, on_uvloop, request, running, settings_for, until


def asked(engine: Engine) -> bool:
    """Whether an engine was asked."""
    return bool(engine.calls)


def left(router: Router) -> bool:
    """Whether the router has noticed that one client left."""
    return router.count("requests_total", status="499") == 1


EVENTS = [b'data: {"n":%d,"text":"%s"}\n\n' % (n, b"x" * (n * 37 % 400)) for n in range(40)] + [b"data: [DONE]\n\n"]
STREAM = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS) + b"0\r\n\r\n"


@pytest.mark.parametrize("seed", range(6))
@on_uvloop
async def test_a_stream_is_relayed_byte_for_byte(seed: int) -> None:
    """Chunks and all, wherever the network cuts what the engine sends."""
    rng = random.Random(seed)

    async def pieces(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Enc")
        await asyncio.sleep(0)
        rest = b"oding: chunked\r\nX-Engine: yes\r\n\r\n" + STREAM
        while rest:
            size = rng.choice([1, 2, 3, 7, 50, 1000])
            await call.send(rest[:size])
            rest = rest[size:]
            await asyncio.sleep(0 if rng.random() < 0.8 else 0.001)

    async with engines_of("a") as engines:
        engines[0].script = pieces
        async with running(settings_for(engines)) as router:
            client = await router.client()
            for _ in range(2):
                reply = await client.ask(chat(stream=True))
                assert reply.raw_body == STREAM
                assert reply.header("x-engine") == "yes"
            client.close()


@on_uvloop
async def test_a_token_is_not_held_back() -> None:
    """A chunk reaches the client before the next one exists."""
    more = asyncio.Event()

    async def one_by_one(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b"first")
        await more.wait()
        await call.chunk(b"second")
        await call.end_stream()

    async with engines_of("a") as engines:
        engines[0].script = one_by_one
        async with running(settings_for(engines)) as router:
            client = await router.client()
            await client.send(request(chat(stream=True)))
            await client.head()
            assert await client.reader.readexactly(10) == b"5\r\nfirst\r\n"
            more.set()
            assert await client.reader.readexactly(16) == b"6\r\nsecond\r\n0\r\n\r\n"
            client.close()


@on_uvloop
async def test_connections_are_kept_on_both_sides() -> None:
    """Many requests of one client use one connection to the engine."""
    async with engines_of("a") as engines, running(settings_for(engines)) as router:
        client = await router.client()
        for _ in range(20):
            assert (await client.ask(chat())).json == {"engine": "a"}
        client.close()
        assert engines[0].connections == 1


@on_uvloop
async def test_pipelined_requests_are_answered_in_order() -> None:
    """Requests sent at once are answered one after the other, errors in their place."""
    async with engines_of("a") as engines:

        async def echo(call: Call) -> None:
            await call.answer(body=call.json["messages"][0]["content"].encode())

        engines[0].script = echo
        async with running(settings_for(engines)) as router:
            client = await router.client()
            parts = [request(chat("one")), request(b"{broken"), request(b"", path="/health", method="GET")]
            await client.send(b"".join([*parts, request(chat("four"))]))
            replies = [await client.reply() for _ in range(4)]
            assert [reply.status for reply in replies] == [200, 400, 503, 200]  # no check has said that it is up
            assert (replies[0].body, replies[3].body) == (b"one", b"four")
            client.close()


@on_uvloop
async def test_a_client_that_leaves_ends_the_engines_work() -> None:
    """The engine sees its connection close while the answer is under way, and before its first byte."""
    for begun in (True, False):

        async def endless(call: Call, begun: bool = begun) -> None:
            if begun:
                await call.begin_stream()
                await call.chunk(b"x")
            await call.gone.wait()

        async with engines_of("a") as engines:
            engines[0].script = endless
            async with running(settings_for(engines)) as router:
                client = await router.client()
                await client.send(request(chat(stream=True)))
                await until(functools.partial(asked, engines[0]), "the request at the engine")
                if begun:
                    await client.head()
                client.close()
                await until(engines[0].calls[0].gone.is_set, "the engine's connection to be closed")
                await until(functools.partial(left, router), "the count")
                assert router.count("dispatched_requests") == 0
                assert router.count("waiting_tokens") == 0
                assert router.count("decoding_requests") == 0


@on_uvloop
async def test_a_retry_happens_before_the_first_byte() -> None:
    """An engine that hangs up, refuses or isn't there costs the client nothing while another one can answer."""

    async def hang_up(call: Call) -> None:
        call.writer.close()

    async def refuse(call: Call) -> None:
        await call.answer(503, b"busy")

    async def head_only(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        call.writer.close()

    for script in (hang_up, refuse, head_only, None):
        async with engines_of("a", "b") as engines, running(settings_for(engines)) as router:
            if script is None:
                await engines[0].stop()
            else:
                engines[0].script = script
            for number in range(8):  # ties go by the text's hash: some of these meet the bad one first
                reply = await router.ask(chat(f"text {number}"))
                assert (reply.status, reply.json) == (200, {"engine": "b"})
            assert router.count("retries_total") >= 1


@on_uvloop
async def test_nothing_is_retried_after_the_first_byte() -> None:
    """A broken answer is cut, so that the client sees that it is not whole, and no other engine is asked."""

    async def break_off(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b"half")
        call.writer.close()

    async with engines_of("a", "b") as engines:
        for engine in engines:
            engine.script = break_off
        async with running(settings_for(engines)) as router:
            client = await router.client()
            await client.send(request(chat(stream=True)))
            await client.head()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 10)
            assert sum(len(engine.calls) for engine in engines) == 1
            assert router.count("attempts_total", outcome="broken") == 1


@on_uvloop
async def test_when_nobody_answers_the_client_is_told() -> None:
    """502 with the last reason and Retry-After, after as many attempts as there may be."""
    async with engines_of("a", "b") as engines, running(settings_for(engines)) as router:
        for engine in engines:
            await engine.stop()
        reply = await router.ask(chat())
        assert reply.status == 502
        assert reply.header("retry-after") == "1"
        assert "can't be reached" in reply.error["message"]
        assert router.count("attempts_total", outcome="connect_failed") == 2


@on_uvloop
async def test_an_engines_own_error_is_relayed() -> None:
    """What the engine says of a request is the client's to read: no retry, no change."""

    async def no(call: Call) -> None:
        await call.answer(400, b'{"error":"too long"}')

    async with engines_of("a", "b") as engines:
        for engine in engines:
            engine.script = no
        async with running(settings_for(engines)) as router:
            reply = await router.ask(chat())
            assert (reply.status, reply.body) == (400, b'{"error":"too long"}')
            assert sum(len(engine.calls) for engine in engines) == 1


@on_uvloop
async def test_a_stale_connection_is_no_fault_of_the_engine() -> None:
    """An engine may close an idle connection just when it is used again: the request goes out on a new one."""

    async def then_close(call: Call) -> None:
        await call.answer()
        call.writer.transport.abort()

    async with engines_of("a") as engines, running(settings_for(engines)) as router:
        engines[0].script = then_close
        client = await router.client()
        for _ in range(10):
            assert (await client.ask(chat())).status == 200
        assert router.count("attempts_total", outcome="broken") == 0
        client.close()


@on_uvloop
async def test_an_engine_killed_under_load_loses_only_what_it_had_begun() -> None:
    """With two engines and one of them killed, every request is answered; later ones go to the other."""
    async with engines_of("a", "b") as engines, running(settings_for(engines), checks=True) as router:

        async def slowly(call: Call) -> None:
            await asyncio.sleep(0.005)
            await call.answer(body=call.engine.name.encode())

        for engine in engines:
            engine.script = slowly

        async def many(client_number: int) -> list[int]:
            client = await router.client()
            statuses = [(await client.ask(chat(f"{client_number} {n}"))).status for n in range(30)]
            client.close()
            return statuses

        tasks = [asyncio.ensure_future(many(number)) for number in range(8)]
        await until(lambda: len(engines[0].calls) > 10, "load on the first engine")
        await engines[0].stop()
        results = [status for statuses in await asyncio.gather(*tasks) for status in statuses]
        assert results == [200] * 240
        assert engines[1].calls


@on_uvloop
async def test_a_downed_engine_is_left_out_and_taken_back() -> None:
    """Checks that fail take an engine out; checks that succeed bring it back."""
    health = {"interval_seconds": 0.02, "failures_max": 2}
    async with engines_of("a", "b") as engines, running(settings_for(engines, health=health), checks=True) as router:
        await until(lambda: router.app.health_report()[0] == 200, "both to be up")
        engines[0].healthy = False
        group = router.app.fleet.groups["m"]
        await until(lambda: [one.name for one in group.usable] == ["b"], "a to be left out")
        assert router.app.health_report()[0] == 200
        for number in range(8):
            assert (await router.ask(chat(f"text {number}"))).json == {"engine": "b"}
        engines[0].healthy = True
        await until(lambda: len(group.usable) == 2, "a to be taken back")
        engines[0].healthy = engines[1].healthy = False
        await until(lambda: router.app.health_report()[0] == 503, "the router to be unhealthy")


@on_uvloop
async def test_an_http10_client_gets_an_answer_without_chunks() -> None:
    """Old clients know no chunks: they get the payload and the connection's end."""

    async def stream(call: Call) -> None:
        await call.begin_stream()
        for word in (b"one ", b"two ", b"three"):
            await call.chunk(word)
        await call.end_stream()

    async with engines_of("a") as engines:
        engines[0].script = stream
        async with running(settings_for(engines)) as router:
            reply = await router.ask(chat(stream=True), version="1.0")
            assert reply.raw_body == b"one two three"
            assert reply.header("transfer-encoding") is None
            assert reply.header("connection") == "close"


@on_uvloop
async def test_an_answer_that_ends_with_its_connection_is_chunked() -> None:
    """An engine without lengths is relayed so that the client's connection can stay."""

    async def until_close(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall there is")
        call.writer.close()

    async with engines_of("a") as engines:
        engines[0].script = until_close
        async with running(settings_for(engines)) as router:
            client = await router.client()
            for _ in range(2):
                assert (await client.ask(chat())).body == b"all there is"
            client.close()


@on_uvloop
async def test_a_slow_client_holds_the_engine_back_and_not_memory() -> None:
    """While a client takes nothing, the router takes nothing from the engine."""
    sent = 0

    async def flood(call: Call) -> None:
        nonlocal sent
        await call.begin_stream()
        block = b"y" * 65536
        while not call.gone.is_set():
            await call.chunk(block)
            sent += len(block)
            await asyncio.sleep(0)

    async with engines_of("a") as engines:
        engines[0].script = flood
        async with running(settings_for(engines)) as router:
            client = await router.client()
            await client.send(request(chat(stream=True)))
            await client.head()
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 64 << 20
            client.close()
            await until(engines[0].calls[0].gone.is_set, "the engine's connection to be closed")


@on_uvloop
async def test_an_instance_gets_its_own_headers() -> None:
    """Host, key and rank are the instance's; what belongs to one connection is not sent on; the id is the router's."""
    async with engines_of("a") as engines:
        settings = settings_for(engines)
        instance = settings.router.instances[0].model_copy(update={"api_key": "engine-key", "dp_rank": 3})
        settings = settings.model_copy(update={"router": settings.router.model_copy(update={"instances": (instance,)})})
        async with running(settings) as router:
            reply = await router.ask(
                chat(),
                headers={
                    "Connection": "keep-alive, X-Mine",
                    "X-Mine": "1",
                    "X-Request-Id": "client's",
                    "X-Data-Parallel-Rank": "9",
                    "TE": "trailers",
                    "Traceparent": "00-1-1-00",
                },
            )
            sent = engines[0].calls[0]
            assert sent.headers["host"] == f"127.0.0.1:{engines[0].port}"
            assert sent.headers["authorization"] == "Bearer engine-key"
            assert sent.headers["x-data-parallel-rank"] == "3"
            assert sent.headers["traceparent"] == "00-1-1-00"
            assert not {"x-mine", "te", "connection"} & sent.headers.keys()
            assert sent.headers["x-request-id"] == reply.header("x-request-id") != "client's"
            assert sent.json["kv_transfer_params"]["kvcommons"]["request_id"] == reply.header("x-request-id")


@on_uvloop
async def test_a_request_without_a_stream_is_counted_as_decoding_in_time() -> None:
    """Its first byte is its last, so the prefill is taken as done after the time that it should take; the load is right
    before and after."""
    going = asyncio.Event()

    async def slow(call: Call) -> None:
        await going.wait()
        await call.answer()

    async with engines_of("a") as engines:
        engines[0].script = slow
        async with running(settings_for(engines, cost={"base_seconds": 0.15, "token_seconds": 1e-7})) as router:
            asked_for = asyncio.ensure_future(router.ask(chat("word " * 500)))
            await until(lambda: engines[0].calls, "the request at the engine")
            candidate = router.app.fleet.instances[0].candidate
            assert candidate.waiting_tokens > 500
            assert candidate.decoding == 0
            await until(lambda: candidate.decoding == 1, "the prefill to be taken as done")
            assert candidate.waiting_tokens == 0
            going.set()
            assert (await asked_for).status == 200
            await until(lambda: candidate.requests == 0, "the end")
            assert (candidate.waiting_tokens, candidate.decoding) == (0, 0)


@on_uvloop
async def test_the_form_for_proxies_is_understood() -> None:
    """A target with scheme and authority means its path."""
    async with engines_of("a") as engines, running(settings_for(engines)) as router:
        reply = await router.ask(chat(), path="http://anywhere.example/v1/chat/completions")
        assert reply.status == 200
        assert engines[0].calls[0].head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


@on_uvloop
async def test_an_engine_that_never_answers_is_given_up() -> None:
    """504 after the time for a first byte, and the engine's connection is closed."""

    async def silent(call: Call) -> None:
        await call.gone.wait()

    async with engines_of("a") as engines:
        engines[0].script = silent
        async with running(settings_for(engines, limits={"first_byte_seconds": 0.05})) as router:
            reply = await router.ask(chat())
            assert reply.status == 504
            await until(engines[0].calls[0].gone.is_set, "the engine's connection to be closed")


def test_engines_are_told_apart() -> None:
    """Two engines of a test are never equal, whatever they did."""
    assert Engine("a") != Engine("a")
