"""A watch against a server that cuts, expires, falls silent and lies about order: the cache ends up true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from fake_api import Failure, FakeApi, fake_api, until
from kvcommons_operator.kube import kinds
from kvcommons_operator.kube.watches import Change, Scope, Watch

MAPS = "/api/v1/namespaces/ns/configmaps"


class Seen:
    """A running watch and what it told."""

    def __init__(self, api: FakeApi, watch: Watch[Any]) -> None:
        self.api, self.watch = api, watch
        self.changes: list[tuple[str, bool, bool]] = []

    def note(self, change: Change[Any]) -> None:
        self.changes.append((change.key[1], change.old is not None, change.new is not None))

    @property
    def names(self) -> list[str]:
        return sorted(name for _, name in self.watch.cache)

    async def becomes(self, *names: str) -> None:
        await until(lambda: self.names == sorted(names))


@asynccontextmanager
async def watching(silence_seconds_max: float = 5.0, kind: kinds.Kind = kinds.CONFIG_MAP) -> AsyncIterator[Seen]:
    async with fake_api() as (api, client):
        api.put(MAPS, "first", data={"a": "1"})
        seen = Seen(api, None)  # type: ignore[arg-type]  # set in the next line, which needs it
        seen.watch = Watch(
            client, Scope(kind, "ns", labels="x=y"), keep=lambda item: item.get("data", {}),
            on_change=seen.note, silence_seconds_max=silence_seconds_max,
        )  # fmt: skip
        task = asyncio.create_task(seen.watch.run())
        try:
            await asyncio.wait_for(seen.watch.synced.wait(), 10)
            await until(lambda: api.streaming)
            yield seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def seen() -> AsyncIterator[Seen]:
    async with watching() as found:
        yield found


async def test_what_comes_changes_and_goes_is_in_the_cache(seen: Seen) -> None:
    """Only what is kept of an object decides whether it has changed."""
    seen.api.put(MAPS, "second", data={"a": "1"})
    await seen.becomes("first", "second")
    seen.api.put(MAPS, "second", data={"a": "1"}, metadata={"labels": {"new": "label"}})
    seen.api.remove(MAPS, "first")
    await seen.becomes("second")
    assert seen.changes == [("first", False, True), ("second", False, True), ("first", True, False)]
    assert seen.api.requests("GET")[0]["labelSelector"] == "x=y"


async def test_a_cut_stream_goes_on_where_it_was(seen: Seen) -> None:
    """No new list: the next stream begins at the last version, which bookmarks carry on."""
    seen.api.bookmark(MAPS)
    marked = str(seen.api.version)
    seen.api.break_streams()
    await until(lambda: len(seen.api.requests("GET", watch=True)) > 1)
    assert len(seen.api.requests("GET")) == 1
    assert seen.api.requests("GET", watch=True)[1]["resourceVersion"] == marked
    seen.api.put(MAPS, "second", data={})
    await seen.becomes("first", "second")


async def test_an_expired_version_lists_anew_and_finds_what_was_missed(seen: Seen) -> None:
    """Objects that went meanwhile are told as gone, those that came as new."""
    seen.api.objects[MAPS].pop("first")
    seen.api.objects[MAPS]["second"] = {"metadata": {"name": "second", "namespace": "ns", "resourceVersion": "150"}}
    seen.api.version = 200
    seen.api.oldest = 200
    seen.api.break_streams()
    await seen.becomes("second")
    assert seen.watch.restarts["expired"] == 1


async def test_a_refused_watch_with_410_lists_anew(seen: Seen) -> None:
    """The server may refuse an old version before the stream begins, as well as in it."""
    seen.api.failures.append(Failure(410, watch=True, body={"reason": "Expired", "code": 410}))
    seen.api.break_streams()
    await until(lambda: len(seen.api.requests("GET")) == 2)
    seen.api.put(MAPS, "second", data={})
    await seen.becomes("first", "second")


@pytest.mark.parametrize("status", [500, 503, 429, 0])
async def test_a_server_in_trouble_is_asked_again_with_pauses(seen: Seen, status: int) -> None:
    """The cache stays as it was meanwhile, and goes on afterwards."""
    seen.api.failures.extend(Failure(status, watch=True) for _ in range(2))
    seen.api.break_streams()
    await until(lambda: not seen.api.failures)
    assert seen.names == ["first"]
    seen.api.put(MAPS, "second", data={})
    await seen.becomes("first", "second")


async def test_a_stream_that_falls_silent_is_given_up() -> None:
    """Whatever TCP believes: without a bookmark for too long, the watch begins anew and hears what the dead stream kept."""
    async with watching(silence_seconds_max=0.3) as seen:
        seen.api.silent = True
        seen.api.objects[MAPS]["second"] = {"metadata": {"name": "second", "namespace": "ns", "resourceVersion": "140"}}
        seen.api.oldest = seen.api.version = 200
        await until(lambda: seen.watch.restarts.get("broken"))
        seen.api.silent = False
        await seen.becomes("first", "second")


async def test_what_a_request_answered_is_not_undone_by_a_late_event(seen: Seen) -> None:
    """Our own write is in the cache at once; an older event of the stream is no news, a newer one is."""
    newest = {"metadata": {"name": "first", "namespace": "ns", "resourceVersion": "900"}, "data": {"a": "mine"}}
    seen.watch.offer(newest)
    seen.api.put(MAPS, "first", data={"a": "older"})
    seen.api.put(MAPS, "second", data={})
    await seen.becomes("first", "second")
    assert seen.watch.cache[("ns", "first")] == {"a": "mine"}
    seen.api.version = 1_000
    seen.api.put(MAPS, "first", data={"a": "newer"})
    await until(lambda: seen.watch.cache[("ns", "first")] == {"a": "newer"})


async def test_what_is_gone_does_not_come_back_by_a_late_answer(seen: Seen) -> None:
    """An apply of ours was answered after its object had been deleted: were it kept, it would never be made again."""
    late = {"metadata": {"name": "first", "namespace": "ns", "resourceVersion": str(seen.api.version)}, "data": {}}
    seen.api.put(MAPS, "first", data={"a": "2"})
    seen.api.version += 10
    seen.api.remove(MAPS, "first")
    await seen.becomes()
    seen.watch.offer(late)
    assert seen.names == []
    seen.api.put(MAPS, "first", data={"a": "3"})
    await seen.becomes("first")


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_takes_nothing_away(seen: Seen, status: int) -> None:
    """An API server that has just begun refuses for a moment: were the pods gone by that, all would be fenced, and engines rolled."""
    seen.api.failures.extend(Failure(status, watch=True, body={"message": "no"}) for _ in range(2))
    seen.api.break_streams()
    await until(lambda: not seen.api.failures)
    assert seen.names == ["first"]
    seen.api.put(MAPS, "second", data={})
    await seen.becomes("first", "second")
    assert all(new for _, _, new in seen.changes)


async def test_an_api_of_others_that_goes_is_an_empty_cache() -> None:
    """A kind of another project that is not installed any more holds nobody up; what was known of it is forgotten."""
    async with watching(kind=replace(kinds.CONFIG_MAP, optional=True)) as seen:
        seen.api.failures.append(Failure(404, watch=True, body={"message": "no"}))
        seen.api.break_streams()
        await seen.becomes()
        assert seen.watch.synced.is_set()
