"""The watch of pods against an API server that fails in every way it can: what was heard last stays, and goes on being true."""

import asyncio
import functools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_kube import NAMESPACE, SELECTOR, Failure, FakeKube, fake_kube, pod
from kvcommons_router import pod_watch
from kvcommons_router.kube_session import KubeSession
from kvcommons_router.pod_set import PodSet
from kvcommons_router.pod_watch import PodWatch, Trouble
from kvcommons_router.roster import Presence
from kvcommons_router.settings import KubernetesSettings
from kvcommons_router.wanted_text import WantedReader
from router_support import on_uvloop, until


@dataclass
class Heard:
    """What a listener was told, and the fleet as it is then."""

    pods: PodSet
    lists: int = 0
    events: Counter[str] = field(default_factory=Counter)
    troubles: Counter[Trouble] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    fleets: list[dict[str, Presence]] = field(default_factory=list)
    reader: WantedReader = field(default_factory=WantedReader)

    @property
    def fleet(self) -> dict[str, Presence]:
        return self.fleets[-1] if self.fleets else {}

    def shows(self, name: str, presence: Presence) -> bool:
        return self.fleet.get(name) is presence

    def listed(self) -> None:
        self.lists += 1

    def event(self, kind: str) -> None:
        self.events[kind] += 1

    def heard(self) -> None:
        self.fleets.append({one.settings.name: one.presence for one in self.reader.read(self.pods.text())})

    def trouble(self, trouble: Trouble) -> None:
        self.troubles[trouble] += 1

    def problems(self, told: Sequence[str]) -> None:
        self.told.extend(told)


@asynccontextmanager
async def watching(kube: FakeKube, folder: Path) -> AsyncIterator[Heard]:
    """A watch until the end of the block."""
    (folder / "token").write_text("first\n")
    settings = KubernetesSettings(
        namespace=NAMESPACE,
        selector=SELECTOR,
        model="m",
        api=kube.url,
        token_file=folder / "token",
        ca_file=folder / "ca.crt",
    )
    pods, session = PodSet(settings), KubeSession(settings)
    heard = Heard(pods)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    watch = PodWatch(session, path, SELECTOR, pods, heard, rng=random.Random(7).random)
    task = asyncio.ensure_future(watch.run())
    try:
        await until(lambda: heard.lists or heard.troubles, "a first answer")
        yield heard
        assert not task.done(), "the watch never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await session.renew()


@on_uvloop
async def test_a_pods_life_is_followed(tmp_path: Path) -> None:
    """Coming, ready, not ready, deleting, gone: each is heard within a moment, with one list and one watch."""
    async with fake_kube() as kube, watching(kube, tmp_path) as heard:
        await until(lambda: kube.watchers == 1, "a watch")
        for one, presence in (
            (pod("a", ready=False), Presence.OUT),
            (pod("a"), Presence.READY),
            (pod("a", ready=False), Presence.OUT),
            (pod("a"), Presence.READY),
        ):
            kube.put(one)
            await until(functools.partial(heard.shows, "a", presence), f"{presence}")
        kube.begin_to_delete("a")
        await until(lambda: heard.fleet.get("a") is Presence.LEAVING, "leaving")
        kube.delete("a")
        await until(lambda: heard.fleet == {}, "nobody")
        assert (kube.count("list"), kube.count("watch"), heard.troubles) == (1, 1, Counter())


@on_uvloop
async def test_a_long_list_comes_in_pages(tmp_path: Path) -> None:
    """All pages make one fleet, and no part of it is ever shown as the whole."""
    async with fake_kube() as kube:
        kube.page_pods = 3
        for number in range(10):
            kube.put(pod(f"p{number}"))
        async with watching(kube, tmp_path) as heard:
            assert (len(heard.fleet), heard.lists, kube.count("list")) == (10, 1, 4)
            assert {len(fleet) for fleet in heard.fleets} == {10}


@on_uvloop
async def test_too_old_a_version_is_listed_again(tmp_path: Path) -> None:
    """After 410, in the watch's own words or as its status, what happened meanwhile is known from a new list."""
    async with fake_kube() as kube:
        kube.put(pod("a"))
        async with watching(kube, tmp_path) as heard:
            await until(lambda: kube.watchers == 1, "a watch")
            kube.forget_history()
            kube.pods.pop("a")
            kube.pods["b"] = pod("b", resourceVersion="1")
            kube.cut()
            await until(lambda: heard.fleet == {"b": Presence.READY}, "b alone")
            await until(lambda: kube.watchers == 1, "a watch")
            kube.failures.append(Failure(410, verb="watch"))
            kube.cut()
            await until(lambda: heard.lists == 3, "another list")
            assert heard.troubles[Trouble.EXPIRED] == 2


@on_uvloop
async def test_a_bookmark_spares_a_list(tmp_path: Path) -> None:
    """How far a quiet watch is, it hears from bookmarks: history may go on being forgotten."""
    async with fake_kube() as kube:
        kube.put(pod("a"))
        async with watching(kube, tmp_path) as heard:
            await until(lambda: kube.watchers == 1, "a watch")
            kube.bookmark()
            await until(lambda: heard.events["bookmark"] == 1, "a bookmark")
            kube._oldest = kube.version  # what was before the bookmark is forgotten
            kube.cut()
            await until(lambda: kube.count("watch") == 2, "another watch")
            kube.put(pod("b"))
            await until(lambda: "b" in heard.fleet, "b")
            assert (heard.lists, heard.troubles[Trouble.EXPIRED]) == (1, 0)


@pytest.mark.parametrize("status", [429, 500, 503])
@on_uvloop
async def test_a_busy_server_is_waited_for(status: int, tmp_path: Path) -> None:
    """The fleet stays as it was heard, and what happened meanwhile is heard then; `Retry-After` is kept to."""
    async with fake_kube() as kube:
        kube.put(pod("a"))
        async with watching(kube, tmp_path) as heard:
            await until(lambda: kube.watchers == 1, "a watch")
            kube.failures.extend([Failure(status, {"Retry-After": "0"})] * 3)
            kube.cut()
            kube.put(pod("b"))
            await until(lambda: "b" in heard.fleet, "b")
            assert all("a" in fleet for fleet in heard.fleets)
            trouble = Trouble.THROTTLED if status == 429 else Trouble.SERVER
            assert (heard.troubles[trouble], heard.lists) == (3, 1)


def test_retry_after_is_the_least_and_has_a_bound() -> None:
    """A server that says how long it needs is believed, within reason."""
    assert pod_watch._refusal(429, "", "7").seconds == 7.0
    assert pod_watch._refusal(503, "", "999999").seconds == pod_watch.RETRY_AFTER_SECONDS_MAX
    assert pod_watch._refusal(429, "", "Wed, 21 Oct 2026 07:28:00 GMT").seconds == 0.0


@on_uvloop
async def test_a_line_that_was_cut_is_heard_whole_from_the_next_watch(tmp_path: Path) -> None:
    """A connection that ends in the middle of an event has not said it; the next one says it again."""
    async with fake_kube() as kube, watching(kube, tmp_path) as heard:
        await until(lambda: kube.watchers == 1, "a watch")
        line = json.dumps({"type": "ADDED", "object": pod("half", resourceVersion="999")}).encode()
        kube.say(line[: len(line) // 2])
        kube.cut()
        kube.put(pod("a"))
        await until(lambda: heard.fleet == {"a": Presence.READY}, "a")
        assert heard.lists == 1
        assert heard.troubles[Trouble.CONNECTION] >= 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"not json\n",
        b"[]\n",
        b"{}\n",
        b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"9"}}}\n',
        b'{"type":1}\n',
    ],
)
@on_uvloop
async def test_a_garbage_line_is_no_reason_to_believe_the_rest(garbage: bytes, tmp_path: Path) -> None:
    """It is counted, and all pods are listed again; nobody is lost on the way."""
    async with fake_kube() as kube:
        kube.put(pod("a"))
        async with watching(kube, tmp_path) as heard:
            await until(lambda: kube.watchers == 1, "a watch")
            kube.say(garbage)
            await until(lambda: heard.lists == 2, "another list")
            assert heard.events["unreadable"] == 1
            assert all("a" in fleet for fleet in heard.fleets)


@on_uvloop
async def test_a_rotated_token_is_read_again(tmp_path: Path) -> None:
    """When the old token is let in no more, the one in the file is shown; the fleet stays meanwhile."""
    async with fake_kube() as kube:
        kube.tokens = {"first"}
        kube.put(pod("a"))
        async with watching(kube, tmp_path) as heard:
            await until(lambda: kube.watchers == 1, "a watch")
            kube.tokens = {"second"}
            kube.cut()
            await until(lambda: heard.troubles[Trouble.REFUSED] == 1, "a refusal")
            (tmp_path / "token").write_text("second")
            kube.put(pod("b"))
            await until(lambda: "b" in heard.fleet, "b")
            assert all("a" in fleet for fleet in heard.fleets)
            assert kube.asked[-1] == ("watch", "second")


@on_uvloop
async def test_pauses_grow_and_end(tmp_path: Path) -> None:
    """A server that ends every watch at once is not asked faster and faster."""
    async with fake_kube() as kube:
        kube.put(pod("a"))
        async with watching(kube, tmp_path) as heard:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            kube.failures.extend([Failure(503, verb="watch")] * 4)
            kube.cut()
            await until(lambda: len(kube.failures) == 0, "all failures")
            await until(lambda: kube.watchers == 1, "a watch")
            assert loop.time() - begun >= (0.1 + 0.2 + 0.4) / 2
            assert heard.fleet == {"a": Presence.READY}


@on_uvloop
async def test_a_server_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """The router may start before the API server answers."""
    async with fake_kube() as kube:
        kube.failures.extend([Failure(500)] * 2)
        kube.put(pod("a"))
        async with watching(kube, tmp_path) as heard:
            await until(lambda: heard.fleet == {"a": Presence.READY}, "a")
            assert heard.troubles[Trouble.SERVER] == 2
