"""Requests that wait in the router while every replica has enough to prefill: who goes where and when, who leaves, who is refused."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from router_gate import Gate
from router_support import (
    Client,
    Router,
    chat,
    engines_of,
    on_uvloop,
    request,
    running,
    settings_for,
    until,
)

# One word is enough to close a replica's window, and an estimate does not melt away while a test runs.
QUEUE: dict[str, Any] = {"enabled": True, "window_tokens": 1, "window_seconds": 0.001}
COST: dict[str, Any] = {"token_seconds": 1.0}


@asynccontextmanager
async def fleet(*names: str, queue: dict[str, Any] | None = None, **more: Any) -> AsyncIterator[tuple[Router, Gate]]:
    """A router, and engines that wait for a word."""
    async with engines_of(*names) as engines:
        gate = Gate(engines)
        settings = settings_for(engines, queue=QUEUE | (queue or {}), cost=COST, **more)
        async with running(settings) as router:
            for instance in router.app.fleet.instances:
                instance.learner.prefill.known = True
            yield router, gate


async def ask(router: Router, name: str, words: int = 1, headers: Mapping[str, str] | None = None) -> Client:
    """Sends a request whose text begins with a name; its answer comes when it comes."""
    client = await router.client()
    await client.send(request(chat(f"{name} " + "word " * words, stream=True), headers=headers))
    return client


async def fill(router: Router, gate: Gate) -> None:
    """Gives every replica something to prefill."""
    for number, _ in enumerate(gate.engines):
        await ask(router, f"first{number}", 4)
        await came(gate, number + 1)
    assert all(len(engine.calls) == 1 for engine in gate.engines)


async def came(gate: Gate, count: int) -> None:
    """Waits until so many have come to engines."""
    await until(lambda: len(gate.calls) >= count, f"{count} at engines")


async def queued(router: Router, count: int) -> None:
    """Waits until so many wait."""
    await until(lambda: router.app.context.waiting.size == count, f"{count} that wait")


@on_uvloop
async def test_past_the_window_requests_wait_and_go_shortest_first_to_who_is_free() -> None:
    """Engines get no second request while they prefill; the next one goes to the engine that begins to answer, shortest first."""
    async with fleet("a", "b") as (router, gate):
        await fill(router, gate)
        long = await ask(router, "long", 200)
        await queued(router, 1)
        short = await ask(router, "short")
        await queued(router, 2)
        await until(lambda: router.count("queued_requests") == 2, "the gauge")
        assert len(gate.calls) == 2
        gate.answer(gate.engines[1].calls[0])
        await until(lambda: gate.named("short") is not None, "the short one at an engine")
        assert len(gate.engines[1].calls) == 2
        assert gate.named("long") is None
        gate.answer(gate.engines[0].calls[0])
        await until(lambda: gate.named("long") is not None, "the long one at the other engine")
        for call in gate.calls:
            gate.answer(call)
        assert (await short.reply()).status == 200
        assert (await long.reply()).status == 200
        assert router.app.context.waiting.size == 0


@on_uvloop
async def test_with_room_nothing_waits() -> None:
    """The queue is out of the way while engines can take more: nothing is counted as having waited."""
    async with fleet("a", "b", queue={"window_tokens": 10_000}) as (router, gate):
        for number in range(6):
            await ask(router, f"r{number}")
        await until(lambda: len(gate.calls) == 6, "all of them at engines")
        assert router.count("queue_seconds") == 0


@on_uvloop
async def test_nothing_waits_for_engines_that_nobody_knows_yet() -> None:
    """Until a rate was learnt (answers that are not streamed teach none) everything is sent on at once."""
    async with fleet("a", "b") as (router, gate):
        for instance in router.app.fleet.instances:
            instance.learner.prefill.known = False
        for number in range(6):
            await ask(router, f"r{number}", 50)
        await came(gate, 6)


@on_uvloop
async def test_a_queue_can_be_turned_off() -> None:
    """Then everything is sent on at once, as by the other policies."""
    settings: list[dict[str, Any]] = [{"queue": QUEUE | {"enabled": False}}, {"queue": QUEUE, "policy": "leastLoad"}]
    for more in settings:
        async with engines_of("a", "b") as engines:
            gate = Gate(engines)
            async with running(settings_for(engines, cost=COST, **more)) as router:
                for number in range(5):
                    await ask(router, f"r{number}", 50)
                await came(gate, 5)


@on_uvloop
async def test_who_leaves_while_waiting_reaches_no_engine() -> None:
    """A client that hangs up takes its request out of the queue."""
    async with fleet("a", "b") as (router, gate):
        await fill(router, gate)
        leaver = await ask(router, "leaver")
        await queued(router, 1)
        leaver.close()
        await queued(router, 0)
        for call in gate.calls:
            gate.answer(call)
        await until(lambda: router.count("requests_total", status="499") == 1, "the count")
        assert gate.named("leaver") is None
        await until(lambda: router.app.budgets.requests == 0, "nothing under way")


@on_uvloop
async def test_a_full_queue_answers_429_with_a_time() -> None:
    """One too many is told when to come back, in OpenAI's shape; the connection stays."""
    async with fleet("a", "b", queue={"requests_max": 1}) as (router, gate):
        await fill(router, gate)
        await ask(router, "waits")
        await queued(router, 1)
        client = await ask(router, "refused", 50)
        reply = await client.reply()
        assert reply.status == 429
        assert reply.error["code"] == "rate_limit_exceeded"
        assert 1 <= int(reply.header("retry-after") or 0) <= 60
        assert router.count("refusals_total", limit="queue") == 1
        await client.send(request(chat("refused again"), path="/v1/models", method="GET"))
        assert (await client.reply()).status == 200


@on_uvloop
async def test_nobody_waits_longer_than_is_allowed() -> None:
    """After so many seconds a request is refused instead of being kept."""
    async with fleet("a", "b", queue={"seconds_max": 0.2}) as (router, gate):
        await fill(router, gate)
        client = await ask(router, "patient")
        reply = await client.reply()
        assert reply.status == 429
        assert router.count("refusals_total", limit="queue_seconds") == 1
        assert gate.named("patient") is None


@on_uvloop
async def test_what_the_index_says_too_late_changes_nothing() -> None:
    """A request is looked up again while it waits; an answer that comes when it has been sent does not send it once more."""
    async with fleet("a", "b") as (router, gate):
        await fill(router, gate)
        client = await ask(router, "waits", 50)
        await queued(router, 1)
        gate.answer(gate.engines[0].calls[0])
        await until(lambda: gate.named("waits") is not None, "the one that waited at an engine")
        for connection in router.app.connections:
            if connection.exchange is not None:
                connection.exchange.located({})
        for call in gate.calls:
            gate.answer(call)
        assert (await client.reply()).body == b"data: {}\n\n"
        assert len(gate.calls) == 3


@on_uvloop
async def test_priority_goes_first() -> None:
    """A step up is a head start over requests that came a moment before; a word that is no number is refused."""
    async with fleet("a", "b") as (router, gate):
        await fill(router, gate)
        await ask(router, "usual")
        await queued(router, 1)
        await ask(router, "urgent", headers={"X-Kvcommons-Priority": "2"})
        await queued(router, 2)
        gate.answer(gate.engines[0].calls[0])
        await until(lambda: gate.named("urgent") is not None, "the urgent one")
        assert gate.named("usual") is None
        refused = await ask(router, "wrong", headers={"X-Kvcommons-Priority": "high"})
        assert (await refused.reply()).status == 400


@on_uvloop
async def test_a_tenant_that_floods_does_not_hold_up_another(tmp_path: Path) -> None:
    """The other tenant's one request is next, though twenty came before it."""
    keys = tmp_path / "keys.json"
    entries = [{"tenant": "flood", "key": "flood-key"}, {"tenant": "quiet", "key": "quiet-key", "weight": 2}]
    keys.write_text(json.dumps({"keys": entries}))
    (tmp_path / "salt").write_text("0123456789abcdef")
    secret = tmp_path / "salt"
    async with fleet("a", "b", api_keys=keys, salt_secret=secret) as (router, gate):
        flood, quiet = ({"Authorization": f"Bearer {name}-key"} for name in ("flood", "quiet"))
        for number in range(22):
            await ask(router, f"flood{number}", headers=flood)
        await queued(router, 20)
        await ask(router, "quiet", 3, headers=quiet)
        await queued(router, 21)
        for _ in range(2):
            taken = len(gate.calls)
            gate.answer(gate.engines[0].calls[-1])
            await came(gate, taken + 1)
        assert gate.named("quiet") is not None


@pytest.mark.parametrize("what", ["answers", "hangs up"])
@on_uvloop
async def test_an_engine_that_is_done_in_whatever_way_is_free(what: str) -> None:
    """Not only a first byte makes room: so does a client that leaves before it."""
    async with fleet("a", "b") as (router, gate):
        client = await ask(router, "first", 4)
        await until(lambda: len(gate.calls) == 1, "one at an engine")
        await ask(router, "second", 4)
        await until(lambda: len(gate.calls) == 2, "one at each engine")
        await ask(router, "third")
        await queued(router, 1)
        if what == "answers":
            gate.answer(gate.calls[0])
        else:
            client.close()
        await until(lambda: gate.named("third") is not None, "the third")
