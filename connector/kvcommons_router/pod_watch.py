"""All pods of a selector, and then each change of them: the API server's list and watch, over any trouble on the way.

What was heard last stays in force until something newer is heard: being cut off from the API server takes no instance
away from anybody.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import aiohttp
import orjson

from kvcommons_router.kube_session import KubeSession
from kvcommons_router.pod_set import PodSet
from kvcommons_router.pods import UnreadablePodError

logger = logging.getLogger(__name__)

PAGE_PODS: Final = 500
PAGES_MAX: Final = 200
LIST_BYTES_MAX: Final = 64 * 1024 * 1024  # one page
LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # an object of the API has at most 1.5 MiB
WATCH_SECONDS_MIN: Final = 240.0
WATCH_SECONDS_MAX: Final = 300.0
WATCH_GRACE_SECONDS: Final = 15.0
PAUSE_SECONDS_MIN: Final = 0.1
PAUSE_SECONDS_MAX: Final = 10.0
STEADY_SECONDS: Final = 5.0  # what went on for so long was no failure in a row
RETRY_AFTER_SECONDS_MAX: Final = 60.0


class Trouble(enum.StrEnum):
    """Why the API server was not heard; the words of the metric."""

    EXPIRED = "expired"
    THROTTLED = "throttled"
    REFUSED = "refused"
    SERVER = "server"
    CONNECTION = "connection"


class WatchError(Exception):
    """The list or the watch can't go on. `relist`: what was heard may have gaps. `seconds`: not before this."""

    def __init__(self, trouble: Trouble, message: str, *, relist: bool = False, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.relist = relist or trouble is Trouble.EXPIRED
        self.seconds = min(seconds, RETRY_AFTER_SECONDS_MAX)


class Listener(Protocol):
    """Who hears what happens."""

    def listed(self) -> None:
        """All pods were heard."""

    def event(self, kind: str) -> None:
        """One event was heard: added, modified, deleted, bookmark or unreadable."""

    def heard(self) -> None:
        """The set may be another now; called once for all events that came together."""

    def trouble(self, trouble: Trouble) -> None:
        """The API server is not heard for now."""

    def problems(self, told: Sequence[str]) -> None:
        """Pods say what is not understood."""


class PodWatch:
    """Runs until cancelled."""

    def __init__(
        self,
        session: KubeSession,
        path: str,
        selector: str,
        pods: PodSet,
        listener: Listener,
        *,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._session = session
        self._path = path
        self._selector = selector
        self._pods = pods
        self._listener = listener
        self._rng = rng
        self._version = ""  # of what was heard last; empty: all of it must be heard again
        self._failures = 0

    async def run(self) -> None:
        """Lists, watches, and begins again as far back as it must."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                if loop.time() - begun < STEADY_SECONDS:
                    raise WatchError(Trouble.SERVER, "the watch ended as soon as it had begun")
            except WatchError as error:
                await self._recover(error, loop.time() - begun)
            except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one
                lost = WatchError(Trouble.CONNECTION, str(error) or type(error).__name__)
                await self._recover(lost, loop.time() - begun)

    async def _recover(self, error: WatchError, lasted_seconds: float) -> None:
        self._listener.trouble(error.trouble)
        if lasted_seconds > STEADY_SECONDS:
            self._failures = 0
        if error.relist:
            self._version = ""
        if error.trouble is Trouble.CONNECTION:
            await self._session.renew()
        self._failures += 1
        pause = min(PAUSE_SECONDS_MIN * 2 ** min(self._failures - 1, 10), PAUSE_SECONDS_MAX)
        pause = max(pause * (0.5 + 0.5 * self._rng()), error.seconds)
        if error.trouble is Trouble.EXPIRED and self._failures == 1:
            pause = 0.0
        level = logging.INFO if error.trouble is Trouble.EXPIRED else logging.WARNING
        logger.log(level, "pods: %s; again in %.1f s, with the instances heard of so far", error, pause)
        await asyncio.sleep(pause)

    # The list.

    async def _list(self) -> None:
        pods: list[object] = []
        token = version = ""
        for _ in range(PAGES_MAX):
            query = {"labelSelector": self._selector, "limit": str(PAGE_PODS)}
            page = await self._page(query | ({"continue": token} if token else {}))
            items, metadata = page.get("items"), page.get("metadata")
            if not isinstance(metadata, dict) or not isinstance(items, list | None):
                raise WatchError(Trouble.SERVER, "the list is none", relist=True)
            pods.extend(items or ())
            version = str(metadata.get("resourceVersion") or "")
            token = str(metadata.get("continue") or "")
            if not token:
                break
        else:
            logger.warning("pods: only the first %d are looked at", len(pods))
        try:
            problems = self._pods.replace(pods)
        except UnreadablePodError as error:
            raise WatchError(Trouble.SERVER, f"in the list is {error}", relist=True) from error
        self._version = version
        self._listener.listed()
        self._listener.problems(problems)
        self._listener.heard()

    async def _page(self, query: dict[str, str]) -> dict[str, Any]:
        async with self._session.get(self._path, query, seconds_max=30.0) as response:
            await _check(response)
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > LIST_BYTES_MAX:
                    raise WatchError(Trouble.SERVER, f"a page of the list has over {LIST_BYTES_MAX} bytes")
        try:
            page = orjson.loads(bytes(body))
        except orjson.JSONDecodeError as error:
            raise WatchError(Trouble.SERVER, "the list is not JSON") from error
        if not isinstance(page, dict):
            raise WatchError(Trouble.SERVER, "the list is none")
        return page

    # The watch.

    async def _watch(self) -> None:
        seconds = int(WATCH_SECONDS_MIN + (WATCH_SECONDS_MAX - WATCH_SECONDS_MIN) * self._rng())
        query = {
            "labelSelector": self._selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        async with self._session.get(self._path, query, seconds_max=seconds + WATCH_GRACE_SECONDS) as response:
            await _check(response)
            splitter = LineSplitter()
            async for piece in response.content.iter_any():
                lines = splitter.feed(piece)
                try:
                    for line in lines:
                        self._take(line)
                finally:
                    self._listener.heard()

    def _take(self, line: bytes) -> None:
        try:
            event = orjson.loads(line)
            kind, pod = event["type"], event["object"]
            version = pod["metadata"]["resourceVersion"] if kind != "ERROR" else ""
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            self._listener.event("unreadable")
            raise WatchError(Trouble.SERVER, "an event can't be read", relist=True) from error
        if kind == "ERROR":
            raise _error_of(pod)
        try:
            if kind in ("ADDED", "MODIFIED"):
                self._listener.problems(self._pods.put(pod))
            elif kind == "DELETED":
                self._pods.drop(pod)
            elif kind != "BOOKMARK":
                raise UnreadablePodError(f"an event of the kind {kind!r}")
        except UnreadablePodError as error:
            self._listener.event("unreadable")
            raise WatchError(Trouble.SERVER, f"in the watch is {error}", relist=True) from error
        self._version = str(version)
        self._listener.event(kind.lower())


class LineSplitter:
    """Whole lines of what comes in pieces; what is left of one when the connection ends was never said."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that a piece completes.

        :raises WatchError: if one is longer than any may be.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            raise WatchError(Trouble.SERVER, f"an event has over {LINE_BYTES_MAX} bytes", relist=True)
        return [line for line in lines if line.strip()]


async def _check(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status == 200:
        return
    text = (await response.content.read(2000)).decode("utf-8", "replace")
    raise _refusal(status, _message(text), response.headers.get("Retry-After", ""))


def _message(text: str) -> str:
    """What a `Status` says; else the beginning of the text."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text[:300]
    return str(found.get("message", ""))[:300] if isinstance(found, dict) else text[:300]


def _error_of(status: object) -> WatchError:
    """The error that a watch ended with."""
    found: dict[str, Any] = status if isinstance(status, dict) else {}
    code = found.get("code")
    return _refusal(code if isinstance(code, int) else 500, str(found.get("message", ""))[:300], "")


def _refusal(status: int, message: str, retry_after: str) -> WatchError:
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
    if status == 410:
        return WatchError(Trouble.EXPIRED, f"what was heard is too old to go on from ({message})")
    if status == 429:
        return WatchError(Trouble.THROTTLED, f"the API server asks for patience ({message})", seconds=seconds)
    if status in (401, 403):
        words = "is the ServiceAccount allowed to get, list and watch pods there?" if status == 403 else "the token"
        return WatchError(Trouble.REFUSED, f"{status}: {message or words}; {words}", seconds=1.0)
    if status >= 500:
        return WatchError(Trouble.SERVER, f"{status}: {message}", seconds=seconds)
    return WatchError(Trouble.REFUSED, f"{status}: {message}", relist=True, seconds=1.0)
