"""The router and the shared index, on a real Redis: affinity, intents, feedback, and Redis going away."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from index_support import FakeStore, RawClient
from kvcommons_core import redis_server
from kvcommons_core.index import MemberInfo, MemberKind, NodeIndex, Tier
from kvcommons_core.settings import IndexSettings
from kvcommons_router.sharing import Sharing
from router_support import Call, Engine, Router, chat, engines_of, index_of, on_uvloop, running, settings_for, until

TEXT = "a long document that several requests share, word by word. " * 400
STEPS = len(TEXT) // 2048


@pytest.fixture
def index(index_settings: IndexSettings, raw: RawClient) -> IndexSettings:
    """The settings of an emptied index."""
    return index_settings


async def joined(router: Router, members: int) -> None:
    """Waits until the index knows so many members."""
    view = index_of(router).reader.view
    await until(lambda: len(view.by_name) >= members, f"{members} members of the index")
    names = {f"engine:{one.name}" for one in router.app.fleet.instances}
    await until(lambda: all(index_of(router).recorder.slot_of(name) for name in names), "the engines' slots")


async def flushed(router: Router) -> None:
    """Waits until Redis has what the router recorded."""
    await index_of(router).recorder.stream.flushed()


@asynccontextmanager
async def node_with(settings: IndexSettings, name: str, keys: Sequence[int], tier: Tier) -> AsyncIterator[NodeIndex]:
    """A cache node that says it holds these text keys."""
    info = MemberInfo(name=name, kind=MemberKind.NODE, address=f"{name}:1")
    node = NodeIndex(settings, info, FakeStore().inventory)
    await node.start()
    try:
        await until(lambda: node.joined, "the node to join")
        for number, key in enumerate(keys):
            node.publish(number.to_bytes(32, "big"), [key], tier)
        await node.stream.flushed()
        yield node
    finally:
        await node.stop()


async def heard_anew(router: Router) -> None:
    """Waits until another router's load is known as it is now: the first text to come may have been said before."""
    sharing = router.app.context.sharing
    assert sharing is not None
    for _ in range(2):
        before = sharing.heard_at
        await until(functools.partial(_later, sharing, before), "the other router")


def _later(sharing: Sharing, than: float) -> bool:
    return sharing.heard_at > than


def text_keys_of(call: Call) -> list[int]:
    """The text keys that a request carried."""
    return [int(key, 16) for key in call.json["kv_transfer_params"]["kvcommons"]["text_keys"]]


def asked(engines: Sequence[Engine]) -> list[int]:
    """How many requests each engine got."""
    return [len(engine.calls) for engine in engines]


@on_uvloop
async def test_a_shared_beginning_goes_to_its_holder_from_any_router(index: IndexSettings) -> None:
    """What one router sent decides where another sends the same document, though the tie would go elsewhere."""
    async with engines_of("a", "b", "c") as engines:
        settings = settings_for(engines, index=index)
        async with running(settings) as first, running(settings) as second:
            await joined(first, 3)
            await joined(second, 3)
            await first.ask(chat(TEXT + "one"))
            await flushed(first)
            await heard_anew(second)
            for number in range(5):
                await second.ask(chat(TEXT + f"question {number}"))
            assert sorted(asked(engines)) == [0, 0, 6]
            assert second.count("index_lookups_total", source="redis") >= 1


@on_uvloop
async def test_long_texts_meet_too(index: IndexSettings) -> None:
    """A text of several hundred keys is looked up by probes instead of key by key, and finds its holder as well."""
    long = TEXT * 20
    async with engines_of("a", "b", "c") as engines:
        settings = settings_for(engines, index=index)
        async with running(settings) as first, running(settings) as second:
            await joined(first, 3)
            await joined(second, 3)
            await first.ask(chat(long + "one"))
            await flushed(first)
            await heard_anew(second)
            candidates = second.app.fleet.instances
            for number in range(4):
                await second.ask(chat(long + f"question {number}"))
            assert sorted(asked(engines)) == [0, 0, 5]
            assert all(one.candidate.waiting_tokens == 0 for one in candidates)
            assert second.count("predicted_tokens_total") == 0  # nobody has reported yet
            assert second.count("index_lookups_total", source="redis") >= 1


@on_uvloop
async def test_intents_count_at_dispatch_not_when_the_answer_ends(index: IndexSettings) -> None:
    """Two requests with one document, the second while the first is still prefilling, meet at one engine."""
    going = asyncio.Event()

    async def wait(call: Call) -> None:
        await going.wait()
        await call.answer()

    async with engines_of("a", "b") as engines:
        for engine in engines:
            engine.script = wait
        # A wait of one prefill is less than another whole prefill.
        async with running(settings_for(engines, index=index, cost={"decode_seconds": 0.0})) as router:
            await joined(router, 2)
            tasks = [asyncio.ensure_future(router.ask(chat(TEXT + "one")))]
            await until(lambda: sum(asked(engines)) == 1, "the first request")
            holder = asked(engines).index(1)
            candidate = router.app.fleet.instances[holder].candidate
            candidate.waiting_tokens //= 2  # its prefill is half done
            tasks.append(asyncio.ensure_future(router.ask(chat(TEXT + "two"))))
            await until(lambda: sum(asked(engines)) == 2, "the second request")
            candidate.waiting_tokens *= 2
            assert asked(engines)[holder] == 2
            going.set()
            await asyncio.gather(*tasks)


@pytest.mark.parametrize("tier", [Tier.MEMORY, Tier.DISK])
@on_uvloop
async def test_the_node_that_holds_a_text_draws_requests_to_its_engine(index: IndexSettings, tier: Tier) -> None:
    """An engine that never saw a text but whose node holds it is preferred to those that would fetch it from there."""
    async with engines_of("a", "b", "c") as engines:
        nodes = {"a": "node-1", "b": "node-2", "c": "node-3"}
        settings = settings_for(engines, index=index, nodes=nodes)
        async with running(settings_for(engines)) as probe:
            await probe.ask(chat(TEXT))
        keys = text_keys_of(next(call for engine in engines for call in engine.calls))
        for favourite, node in (("a", "node-1"), ("c", "node-3")):
            async with node_with(index, node, keys, tier), running(settings) as router:
                await joined(router, 4)
                before = asked(engines)
                reply = await router.ask(chat(TEXT))
                assert reply.json == {"engine": favourite}
                assert sum(asked(engines)) == sum(before) + 1
                await index_of(router).recorder.remove(f"engine:{favourite}", gone=True)


@on_uvloop
async def test_what_an_engine_did_not_do_is_taken_back(index: IndexSettings) -> None:
    """An engine that refuses a request does not hold its text; the next request may go anywhere."""

    async def refuse(call: Call) -> None:
        await call.answer(400, b"{}")

    async with engines_of("a", "b") as engines:
        for engine in engines:
            engine.script = refuse
        async with running(settings_for(engines, index=index)) as router:
            await joined(router, 2)
            await router.ask(chat(TEXT))
            await flushed(router)
            keys = next(call for engine in engines for call in engine.calls).json
            assert keys["kv_transfer_params"]["kvcommons"]["text_keys"]
            index_of(router).reader.mirror.clear()
            answer = await index_of(router).reader.lookup(
                [int(key, 16).to_bytes(8, "little") for key in keys["kv_transfer_params"]["kvcommons"]["text_keys"]]
            )
            assert answer.hits == {}


@on_uvloop
async def test_reports_compare_what_was_predicted_with_what_was(index: IndexSettings) -> None:
    """The connector's report of a request is counted beside the prediction, confirms what was hit and teaches the length
    of tokens; reports of other routers' requests change nothing."""
    async with engines_of("a", "b") as engines, running(settings_for(engines, index=index)) as router:
        await joined(router, 2)
        await until(index_of(router).subscribed, "the subscription")
        await router.ask(chat(TEXT + "one"))
        reply = await router.ask(chat(TEXT + "two"))
        group = router.app.fleet.groups["m"]
        tokens = len(TEXT) // 5
        info = MemberInfo(name="node-1", kind=MemberKind.NODE, address="n:1")
        node = NodeIndex(index, info, FakeStore().inventory)
        await node.start()
        report = {
            "request_id": reply.header("x-request-id"),
            "prompt_tokens": tokens,
            "own_tokens": tokens - 300,
            "commons_tokens": 256,
            "computed_tokens": 44,
            "reason": "",
        }
        node.tell(json.dumps(report | {"request_id": "another router's"}))
        node.tell(json.dumps(report | {"own_tokens": -4}))
        node.tell(json.dumps(report))
        node.tell(json.dumps(report))  # told twice: counted once
        await until(lambda: router.count("feedback_total") == 4, "four reports")
        assert router.count("feedback_total", outcome="applied") == 1
        assert router.count("feedback_total", outcome="invalid") == 1
        assert router.count("feedback_total", outcome="foreign") == 2
        assert router.count("actual_tokens_total", source="own") == tokens - 300
        assert router.count("actual_tokens_total", source="commons") == 256
        predicted = router.count("predicted_tokens_total", source="engine")
        assert predicted == pytest.approx(len(TEXT) / 4, rel=0.2)
        assert group.ratio.bytes_per_token > 4.0
        await node.stop()


@on_uvloop
async def test_a_node_that_did_not_have_it_is_believed_no_more(index: IndexSettings) -> None:
    """A report that says "not found" takes back what the node was said to hold before the request, and not what it
    published since."""
    async with engines_of("a", "b") as engines:
        async with running(settings_for(engines)) as probe:
            await probe.ask(chat(TEXT))
        keys = text_keys_of(next(call for engine in engines for call in engine.calls))
        settings = settings_for(engines, index=index, nodes={"a": "node-1"})
        async with node_with(index, "node-1", keys, Tier.MEMORY) as node, running(settings) as router:
            await joined(router, 3)
            shared = index_of(router)
            await until(shared.subscribed, "the subscription")

            async def report_absence(expected_corrections: int, *, seconds_after_publishing: int) -> int:
                reply = await router.ask(chat(TEXT))
                assert reply.json == {"engine": "a"}
                request_id = str(reply.header("x-request-id"))
                shared.expectations.backdate(request_id, seconds=-seconds_after_publishing)
                tokens = len(TEXT) // 4
                report = {"request_id": request_id, "prompt_tokens": tokens, "own_tokens": 0, "commons_tokens": 0}
                node.tell(json.dumps(report | {"computed_tokens": tokens, "reason": "not_found"}))
                corrected = functools.partial(router.count, "feedback_total", outcome="corrected")
                await until(lambda: corrected() == expected_corrections, "the correction")
                await until(lambda: shared.corrections == 0, "the correction's end")
                await flushed(router)
                shared.reader.mirror.clear()
                answer = await shared.reader.lookup([key.to_bytes(8, "little") for key in keys])
                slot = shared.reader.view.by_name["node-1"].slot
                return answer.hits[slot].depth if slot in answer.hits else 0

            assert await report_absence(1, seconds_after_publishing=-64) == len(keys)
            assert await report_absence(2, seconds_after_publishing=64) == 0


@on_uvloop
async def test_requests_are_served_while_redis_is_dead() -> None:
    """Redis killed in the middle of traffic: every request is answered, equal texts still meet, and when Redis is back
    the index is used again."""
    with redis_server.running() as server:
        index = IndexSettings(url=server.url, prefix="kvc:test:", connect_ms_max=200, call_ms_max=200)
        async with engines_of("a", "b", "c") as engines, running(settings_for(engines, index=index)) as router:
            await joined(router, 3)

            async def traffic(count: int, salt: str) -> None:
                replies = await asyncio.gather(*(router.ask(chat(f"{salt} {n} " + TEXT)) for n in range(count)))
                assert [reply.status for reply in replies] == [200] * count

            await traffic(20, "before")
            running_on = asyncio.ensure_future(traffic(40, "during"))
            server.kill()
            await running_on
            await until(lambda: not index_of(router).reader.view.reachable, "the router to notice")
            before = asked(engines)
            for number in range(6):
                await router.ask(chat(TEXT + f"{number}"))
            after = [now - then for now, then in zip(asked(engines), before, strict=True)]
            assert sorted(after) == [0, 0, 6]
            assert router.count("index_lookups_total", source="down") >= 6


@on_uvloop
async def test_an_engine_that_comes_back_is_not_believed_to_hold_its_past(index: IndexSettings) -> None:
    """Down and up again is a restart: a new epoch voids what was recorded of it."""
    health = {"interval_seconds": 0.02, "failures_max": 1}
    async with (
        engines_of("a", "b") as engines,
        running(settings_for(engines, index=index, health=health), checks=True) as router,
    ):
        await joined(router, 2)
        await router.ask(chat(TEXT))
        await flushed(router)
        holder = asked(engines).index(1)
        name = f"engine:{engines[holder].name}"
        view = index_of(router).reader.view
        epoch = view.by_name[name].epoch
        engines[holder].healthy = False
        await until(lambda: len(router.app.fleet.groups["m"].usable) == 1, "the engine to be left out")
        engines[holder].healthy = True
        await until(lambda: len(router.app.fleet.groups["m"].usable) == 2, "the engine to be back")
        await until(lambda: view.by_name.get(name) and view.by_name[name].epoch != epoch, "a new epoch")
        answer = await index_of(router).reader.lookup(
            [key.to_bytes(8, "little") for key in text_keys_of(engines[holder].calls[0])]
        )
        assert view.by_name[name].slot not in answer.hits
