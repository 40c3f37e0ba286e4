"""A router's side of the index on a real server: the mirror, intents at dispatch, engines that several routers keep."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from index_support import FakeStore, RawClient, engine, node, until
from kvcommons_core.errors import ConfigurationError
from kvcommons_core.index import EngineRecorder, IndexConnection, IndexReader, LookupStatus, NodeIndex, text_key8
from kvcommons_core.index.reader import Mirror
from kvcommons_core.settings import IndexSettings

CHAIN = [text_key8(n) for n in range(20)]
LONG_CHAIN = [text_key8(1_000 + n) for n in range(500)]


class Router:
    """One router process: a reader and a recorder."""

    def __init__(self, settings: IndexSettings) -> None:
        self.reader = IndexReader(settings)
        self.recorder = EngineRecorder(settings, self.reader)

    async def knows(self, *names: str) -> None:
        for name in names:
            self.recorder.add(engine(name))
        await until(
            lambda: all(self.recorder.slot_of(n) is not None and n in self.reader.view.by_name for n in names),
            "the engines are registered and seen",
        )

    async def depth(self, name: str, keys: Sequence[bytes]) -> int:
        slot = self.recorder.slot_of(name)
        assert slot is not None
        hit = (await self.reader.lookup(keys)).hits.get(slot)
        return hit.depth if hit else 0


@asynccontextmanager
async def router(settings: IndexSettings) -> AsyncIterator[Router]:
    made = Router(settings)
    await made.reader.start()
    await made.recorder.start()
    try:
        yield made
    finally:
        await made.recorder.stop()
        await made.reader.stop()


async def test_an_intent_is_seen_by_the_next_request_and_by_other_routers(
    index_settings: IndexSettings, raw: RawClient
) -> None:
    """Recorded at dispatch: the same router sees it at once in its mirror, others with their next lookup."""
    async with router(index_settings) as one, router(index_settings) as two:
        await one.knows("e1", "e2")
        await two.knows("e1", "e2")
        assert (await one.reader.lookup(CHAIN)).hits == {}
        assert one.recorder.record("e1", CHAIN[:12])
        mirrored = one.reader.peek(CHAIN[:1])
        assert mirrored is not None
        assert mirrored.status is LookupStatus.MIRROR
        assert [hit.by_tier for hit in mirrored.hits.values()] == [[1, 0, 0, 0]]
        await one.recorder.stream.flushed()
        assert two.reader.peek(CHAIN) is None, "it has read nothing yet"
        assert await two.depth("e1", CHAIN) == 12
        assert [len(packed) for packed in await two.reader.holders(CHAIN[11:13])] == [8, 0]
        assert await two.depth("e2", CHAIN) == 0


async def test_long_chains_go_through_the_script(index_settings: IndexSettings, raw: RawClient) -> None:
    """More than 64 keys are looked up by galloping inside the server."""
    async with router(index_settings) as one:
        await one.knows("e1")
        one.recorder.record("e1", LONG_CHAIN[:333])
        await one.recorder.stream.flushed()
        one.reader.mirror.clear()
        found = await one.reader.lookup(LONG_CHAIN)
        assert found.status is LookupStatus.REDIS
        assert found.probes < 40
        assert [hit.depth for hit in found.hits.values()] == [333]
        assert int(raw.info("commandstats", "cmdstat_evalsha").split("calls=")[1].split(",")[0]) > 0


async def test_feedback_takes_an_intent_back(index_settings: IndexSettings, raw: RawClient) -> None:
    """What turned out not to be there is retracted, here at once and elsewhere with the stream."""
    async with router(index_settings) as one, router(index_settings) as two:
        await one.knows("e1")
        await two.knows("e1")
        one.recorder.record("e1", CHAIN)
        await one.recorder.stream.flushed()
        assert await one.depth("e1", CHAIN) == 20
        one.recorder.retract("e1", CHAIN[5:])
        assert await one.depth("e1", CHAIN) == 5
        await one.recorder.stream.flushed()
        assert await two.depth("e1", CHAIN) == 5


async def test_a_restarted_engine_holds_nothing(index_settings: IndexSettings, raw: RawClient) -> None:
    """Fencing an engine voids what all routers recorded of it, mirrors included."""
    async with router(index_settings) as one, router(index_settings) as two:
        await one.knows("e1")
        await two.knows("e1")
        one.recorder.record("e1", CHAIN)
        await one.recorder.stream.flushed()
        assert await two.depth("e1", CHAIN) == 20
        one.recorder.fence("e1", "restarted")
        await until(lambda: one.reader.view.by_name.get("e1") and one.recorder.slot_of("e1"), "it is back")

        async def void() -> bool:
            return not (await one.reader.lookup(CHAIN)).hits and not (await two.reader.lookup(CHAIN)).hits

        await until(void, "nobody believes it")


async def test_an_engine_that_left_is_offered_to_nobody(index_settings: IndexSettings, raw: RawClient) -> None:
    """Removed for good, an engine is gone from every router's view within a poll; recording for it is refused."""
    async with router(index_settings) as one, router(index_settings) as two:
        await one.knows("e1")
        await two.reader.view.poll()
        assert "e1" in two.reader.view.by_name
        await one.recorder.remove("e1", gone=True)
        await two.reader.view.poll()
        assert "e1" not in two.reader.view.by_name
        assert not one.recorder.record("e1", CHAIN)
        assert one.recorder.slot_of("e1") is None


async def test_a_router_registers_engines_and_nothing_else(index_settings: IndexSettings) -> None:
    """A node speaks for itself."""
    recorder = EngineRecorder(index_settings, IndexReader(index_settings))
    with pytest.raises(ValueError, match="nodes register themselves"):
        recorder.add(node("n1"))


async def test_nodes_and_engines_are_seen_side_by_side(index_settings: IndexSettings, raw: RawClient) -> None:
    """One lookup tells who has a chain in its engine and who in its node's memory."""
    index = NodeIndex(index_settings, node("n1"), FakeStore().inventory)
    await index.start()
    async with router(index_settings) as one:
        await one.knows("e1")
        await until(lambda: index.member.settled and "n1" in one.reader.view.by_name, "the node is there")
        one.recorder.record("e1", CHAIN[:3])
        index.publish(bytes(32), range(9))
        await one.recorder.stream.flushed()
        await index.stream.flushed()
        hits = (await one.reader.lookup(CHAIN)).hits
        assert hits[one.reader.view.by_name["e1"].slot].by_tier == [3, 0, 0, 0]
        assert hits[one.reader.view.by_name["n1"].slot].by_tier == [0, 9, 0, 0]
    await index.stop()


async def test_confirmed_keys_live_for_another_ttl(index_settings: IndexSettings, raw: RawClient) -> None:
    """A hit keeps a key; what is not hit expires."""
    async with router(index_settings) as one:
        await one.knows("e1")
        one.recorder.record("e1", CHAIN[:2])
        await one.recorder.stream.flushed()
        name = index_settings.prefix.encode() + b"h" + CHAIN[0]
        raw("PEXPIRE", name, 5_000)
        one.recorder.confirm(CHAIN[:1])
        await one.recorder.stream.flushed()
        assert raw("PTTL", name) > 5_000


async def test_a_foreign_value_under_our_prefix_is_counted_and_ignored(
    index_settings: IndexSettings, raw: RawClient
) -> None:
    """Somebody else's bytes give no hit and no error."""
    async with router(index_settings) as one:
        raw("SET", index_settings.prefix.encode() + b"h" + CHAIN[0], "not holders")
        found = await one.reader.lookup(CHAIN)
        assert found.hits == {}
        assert one.reader.stats.corrupt_holders == 1


async def test_without_redis_a_lookup_answers_at_once(index_settings: IndexSettings) -> None:
    """No server: the lookup says so, nothing raises."""
    reader = IndexReader(index_settings.model_copy(update={"url": "redis://127.0.0.1:1/0"}))
    await reader.start()
    assert (await reader.lookup(CHAIN)).status is LookupStatus.AWAY
    assert reader.view.last_error
    await reader.stop()


def test_the_mirror_is_bounded_and_forgets() -> None:
    """It keeps so many keys, the latest ones, and believes them for so long."""
    mirror = Mirror(keys_max=3, seconds_max=1.0)
    for n in range(5):
        mirror.put(text_key8(n), b"", now=float(n) / 10)
    assert len(mirror) == 3
    assert mirror.get(text_key8(0), 0.5) is None
    assert mirror.get(text_key8(4), 1.4) == b""
    assert mirror.get(text_key8(4), 1.5) is None
    mirror.amend(text_key8(4), b"x" * 8)
    assert mirror.get(text_key8(4), 1.4) == b"x" * 8
    assert mirror.get(text_key8(4), 1.5) is None, "our own word makes the others' no fresher"
    empty = Mirror(keys_max=0, seconds_max=1.0)
    empty.put(b"k", b"", now=0.0)
    assert len(empty) == 0


@pytest.mark.parametrize("url", ["", "http://x", "redis+sentinel://127.0.0.1:1", "redis+cluster://nohost"])
async def test_addresses_that_are_none_are_refused_with_the_remedy(index_settings: IndexSettings, url: str) -> None:
    """A wrong URL is a setting to mend, never a Redis to wait for."""
    with pytest.raises(ConfigurationError, match=r"index\.url"):
        await IndexConnection(index_settings.model_copy(update={"url": url})).run_ids()
