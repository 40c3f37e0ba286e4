"""Several workers, and several routers, in front of the same engines: what they tell one another, and one queue made of several."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
from kvcommons_core import redis_server
from kvcommons_core.settings import IndexSettings
from kvcommons_router.errors import Refusal
from kvcommons_router.quotas import Allowance
from kvcommons_router.sharing import Posts
from router_gate import Gate
from router_support import Client, Router, chat, engines_of, on_uvloop, request, running, settings_for, until

QUEUE: dict[str, Any] = {"enabled": True, "window_tokens": 1, "window_seconds": 0.001}
COST: dict[str, Any] = {"token_seconds": 1.0}


async def ask(router: Router, name: str, words: int = 1) -> Client:
    """Sends a request whose text begins with a name."""
    client = await router.client()
    await client.send(request(chat(f"{name} " + "word " * words, stream=True)))
    return client


def known(router: Router) -> None:
    """Rates are as good as learnt, and believed at once."""
    for instance in router.app.fleet.instances:
        instance.learner.prefill.known = instance.candidate.prefill.known = True


@asynccontextmanager
async def workers(*names: str) -> AsyncIterator[tuple[list[Router], Gate]]:
    """Two workers of a router, in one process."""
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(engines_of(*names))
        gate = Gate(engines)
        posts = Posts(2)
        settings = settings_for(engines, queue=QUEUE, cost=COST, workers=2, policy="cost")
        routers = [await stack.enter_async_context(running(settings, row=row, posts=posts)) for row in range(2)]
        for router in routers:
            known(router)
        yield routers, gate


@asynccontextmanager
async def routers_of_one_index(*names: str) -> AsyncIterator[tuple[list[Router], Gate, redis_server.RedisServer]]:
    """Two routers that share a Redis and nothing else."""
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(redis_server.running())
        engines = await stack.enter_async_context(engines_of(*names))
        gate = Gate(engines)
        index = IndexSettings(url=redis.url, prefix="kvc:test:", lookup_ms_max=50.0)
        settings = settings_for(engines, queue=QUEUE, cost=COST, index=index)
        routers = [await stack.enter_async_context(running(settings)) for _ in range(2)]
        for router in routers:
            known(router)
            await until(lambda router=router: router.app.index.subscribed(), "the subscription")  # type: ignore[misc]
        yield routers, gate, redis


def load_of(router: Router) -> list[tuple[int, int]]:
    """Requests and decoding at each engine, as a router sees them."""
    candidates = [one.candidate for one in router.app.fleet.instances]
    return [(one.requests, one.decoding) for one in candidates]


def rivals(router: Router) -> int:
    """How many wait elsewhere, as far as a router has heard."""
    lines = [line for _, binder in router.app.context.waiting.binders() for line in binder.tickets.lines.values()]
    return sum(len(line.rivals) for line in lines)


async def one_queue(routers: Sequence[Router], gate: Gate) -> None:
    """Both see the same load, and send what one queue would: the shortest first, wherever it waits."""
    one, other = routers
    for number in range(2):
        await ask(one, f"first{number}", 4)
        await until(lambda count=number + 1: len(gate.calls) == count, "one more at an engine")  # type: ignore[misc]
    assert [len(engine.calls) for engine in gate.engines] == [1, 1]
    await until(lambda: load_of(other) == [(1, 0), (1, 0)], "that the other one sees it")
    await ask(one, "long", 200)
    await until(lambda: one.app.context.waiting.size == 1, "the long one waits")
    await ask(other, "short", 2)
    await until(lambda: other.app.context.waiting.size == 1, "the short one waits")
    await until(lambda: rivals(one) == rivals(other) == 1, "that each knows of the other's")
    gate.answer(gate.engines[0].calls[0])  # the one that has the long one waiting hears of it first
    await until(lambda: gate.named("short") is not None, "the short one at an engine")
    assert gate.named("long") is None
    gate.answer(gate.engines[0].calls[1])
    await until(lambda: gate.named("long") is not None, "the long one at an engine")
    for call in gate.calls:
        gate.answer(call)
    await until(lambda: load_of(one) == load_of(other) == [(0, 0), (0, 0)], "that nothing is left")
    assert rivals(one) == rivals(other) == 0


@on_uvloop
async def test_workers_of_a_router_make_one_queue() -> None:
    """What waits in another worker has its place in the order of all."""
    async with workers("a", "b") as (routers, gate):
        await one_queue(routers, gate)


@on_uvloop
async def test_routers_of_one_index_make_one_queue() -> None:
    """Routers that share a Redis and nothing else do the same."""
    async with routers_of_one_index("a", "b") as (routers, gate, _):
        await one_queue(routers, gate)


@on_uvloop
async def test_what_is_not_understood_is_as_if_nothing_had_been_said() -> None:
    """Another version's text, or nobody's, ends nothing: its sender is as one that is silent."""
    async with workers("a", "b") as (routers, gate):
        one = routers[0].app.context
        assert one.sharing is not None
        said = {"router": "r", "worker": 0, "at": 0.0, "load": {"a": [9000, 0, 3, 0.0]}, "rates": {}, "spent": {}}
        ticket = [1, "", 1.0, 0.0, 7, [0.5, 0.5]]
        good = said | {"waits": {"m": [["a", "b"], [ticket]]}}
        bad: list[object] = [
            [],
            {"router": "r"},
            said | {"waits": {"m": [["a"], [ticket]]}},
            said | {"waits": {"m": [["a", "b"], [[1, "", 1.0, 0.0, 7, ["x", 1]]]]}},
            said | {"load": {"a": 7}, "waits": {}},
            said | {"at": "now", "waits": {}},
        ]
        for text in (b"", b"{", *[orjson.dumps(one) for one in bad]):
            one.sharing.take(orjson.dumps(good))
            one.sharing.listen(one.loop_time())
            assert rivals(routers[0]) == 1
            one.sharing.take(text)
            one.sharing.listen(one.loop_time())
            one.load.refresh()
        assert rivals(routers[0]) == 0
        client = await ask(routers[0], "still served")
        await until(lambda: len(gate.calls) == 1, "it at an engine")
        gate.answer(gate.calls[0])
        assert (await client.reply()).status == 200


@on_uvloop
async def test_a_tenants_minute_is_one_for_all_workers() -> None:
    """What one lets pass is missing at the other within a moment."""
    async with workers("a", "b") as (routers, _):
        one, other = (router.app.context.quotas for router in routers)
        allowance = Allowance(requests=3)
        for quotas in (one, other):
            quotas.check("t", allowance)
            quotas.spend("t", 10)

        def refused() -> bool:
            one.spend("t", 10)  # until the other has heard of two since it first heard of any
            with contextlib.suppress(Refusal):
                other.check("t", allowance)
                return False
            return True

        await until(refused, "the other to refuse")


@on_uvloop
async def test_who_is_silent_holds_up_nobody() -> None:
    """A worker that stands still leaves requests that others think of no longer than a moment, and its load for some seconds."""
    async with workers("a", "b") as (routers, gate):
        one, other = routers
        for number in range(2):
            await ask(one, f"first{number}", 4)
        await ask(one, "old", 2)
        await until(lambda: rivals(other) == 1, "that the other knows what waits")
        one.app.context.sharing = None  # it says no more
        await ask(other, "new", 2)
        await until(lambda: rivals(other) == 0, "that it is forgotten")
        assert load_of(other) == [(1, 0), (1, 0)]
        assert gate.named("new") is None
        await until(lambda: gate.named("new") is not None, "the other's request at an engine")


@on_uvloop
async def test_routers_go_on_without_redis() -> None:
    """Each by itself: nobody waits for what can't be heard, and no client sees an error."""
    async with routers_of_one_index("a", "b") as (routers, gate, redis):
        await one_queue(routers, gate)
        redis.kill()
        clients = [await ask(router, f"{name}{at}", 3) for at, router in enumerate(routers) for name in ("x", "y")]
        await until(lambda: len(gate.calls) >= 6, "two of them at engines")
        for _ in range(4):
            for call in gate.calls:
                gate.answer(call)
            await until(lambda: len(gate.calls) == 8, "all of them at engines")
        for call in gate.calls:
            gate.answer(call)
        assert [(await client.reply()).status for client in clients] == [200] * 4
