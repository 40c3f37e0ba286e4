"""Watching outside kopf: one kind, by selector, page by page, into a cache that keeps only what is needed.

kopf streams every object of a kind to us; for pods and Deployments of a whole cluster that is too much. A watch here lists once, follows the
stream by resource version and bookmarks, lists anew when the version has expired, and starts over when a stream falls silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import aiohttp
import orjson

from kvcommons_operator.kube.client import JSON, METADATA_ONLY, Document, KubeClient
from kvcommons_operator.kube.errors import ExpiredError, ForbiddenError, KubeError, NotFoundError, of_status
from kvcommons_operator.kube.kinds import Kind

SERVER_SECONDS: Final = 1_500
"""The server ends a stream after this long; it is followed on at once. Jittered, so that not all end together."""
SILENCE_SECONDS_MAX: Final = 90.0
"""Bookmarks come about every minute: a stream that says nothing for longer is dead, whatever TCP believes."""
EVENT_BYTES_MAX: Final = 8 << 20
BACKOFF_SECONDS: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 30.0
MISSING_SECONDS: Final = 60.0
"""An API of others that is not installed, or may not be read, is tried again this often."""
STEADY_SECONDS: Final = 1.0
"""A stream that ends sooner and has brought nothing is not followed by the next at once."""
GONE_MAX: Final = 1_024

Key = tuple[str, str]
"""(namespace, name)"""

logger = logging.getLogger(__name__)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What happened to one object, as far as the cache keeps it. Both are there unless it came or went."""

    kind: Kind
    key: Key
    old: T | None
    new: T | None


@dataclass(frozen=True, slots=True)
class Scope:
    """What is watched. Without a namespace: all of them."""

    kind: Kind
    namespace: str | None = None
    labels: str = ""
    fields: str = ""
    metadata_only: bool = False


class Watch(Generic[T]):
    """Keeps `cache` true. `run` until cancelled; `synced` is set after the first complete list."""

    def __init__(
        self,
        client: KubeClient,
        scope: Scope,
        *,
        keep: Callable[[Document], T],
        on_change: Callable[[Change[T]], None],
        silence_seconds_max: float = SILENCE_SECONDS_MAX,
        server_seconds: int = SERVER_SECONDS,
    ) -> None:
        self.scope = scope
        self.cache: dict[Key, T] = {}
        self.synced = asyncio.Event()
        self.restarts: dict[str, int] = {}
        """How often a stream was begun anew, by reason; "end" is the ordinary one."""
        self._client = client
        self._keep = keep
        self._versions: dict[Key, int] = {}
        self._gone: dict[Key, int] = {}
        """When the latest went: the answer to a request of ours may come after the event that the object is gone."""
        self._on_change = on_change
        self._silence_seconds_max = silence_seconds_max
        self._server_seconds = server_seconds
        self._failures = 0

    async def run(self) -> None:
        """Lists, follows, and begins again where a stream ends; never returns by itself."""
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list()
                    self.synced.set()
                begun, before = time.monotonic(), version
                version = await self._follow(version)
                self._count("end")
                # A server that is busy ends the stream of who reads too slowly: what it still has to tell is asked for at once.
                if time.monotonic() - begun < STEADY_SECONDS and version == before:
                    await self._pause()
                self._failures = 0
            except ExpiredError:
                version = ""
                self._count("expired")
                if self._failures:
                    await self._pause()
                self._failures += 1
            except (NotFoundError, ForbiddenError) as error:
                version = ""
                self._count("missing")
                await self._missing(error)
            except (KubeError, aiohttp.ClientError, TimeoutError, OSError) as error:
                self._failures += 1
                self._count("broken")
                logger.info("watch of %s begins anew: %s", self.scope.kind.plural, error or type(error).__name__)
                await self._pause()

    async def _missing(self, error: KubeError) -> None:
        """Nobody has objects of a kind that is not installed. Of every other kind what was heard last stays in force: an API server that
        has just begun, or a token that has just ended, is refused for a moment, and nothing of ours is gone by that."""
        logger.warning("%s cannot be watched: %s", self.scope.kind.plural, error)
        if self.scope.kind.optional:
            if isinstance(error, NotFoundError):
                self._replace({}, 0)
            self.synced.set()
            await asyncio.sleep(MISSING_SECONDS * (0.5 + random.random()))
            return
        self._failures += 1
        await self._pause()

    async def _pause(self) -> None:
        bound = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** min(max(self._failures - 1, 0), 10))
        await asyncio.sleep(bound * (0.5 + random.random() / 2))

    def _count(self, reason: str) -> None:
        self.restarts[reason] = self.restarts.get(reason, 0) + 1

    async def _list(self) -> str:
        """The whole list, compared with the cache, so that nothing that happened meanwhile is missed."""
        scope, version = self.scope, ""
        found: dict[Key, tuple[int, T]] = {}
        pages = self._client.pages(
            scope.kind, scope.namespace, labels=scope.labels, fields=scope.fields, metadata_only=scope.metadata_only
        )
        async for page in pages:
            version = page.resource_version
            for item in page.items:
                found[_key(item)] = (_version(item), self._keep(item))
        self._replace(found, _number(version))
        return version

    def offer(self, item: Document) -> T:
        """An object as a request answered it: often newer than what the stream has brought so far, which then brings it once more.
        Returns what is kept of it."""
        key, version = _key(item), _version(item)
        if version and version == self._versions.get(key):
            return self.cache[key]
        kept = self._keep(item)
        self._put(key, version, kept)
        return kept

    def _replace(self, found: dict[Key, tuple[int, T]], version: int) -> None:
        for key in [key for key in self.cache if key not in found]:
            self._put(key, version, None)
        for key, (number, item) in found.items():
            self._put(key, number, item)

    def _put(self, key: Key, version: int, new: T | None) -> None:
        """What is older than what the cache has is no news: our own request may have been faster than the stream."""
        if version and version < max(self._versions.get(key, 0), self._gone.get(key, 0)):
            return
        old = self.cache.get(key)
        if new is None:
            self.cache.pop(key, None)
            self._versions.pop(key, None)
            if len(self._gone) >= GONE_MAX:
                self._gone.pop(next(iter(self._gone)))
            self._gone[key] = version
        else:
            self.cache[key], self._versions[key] = new, version
        if old != new:
            self._on_change(Change(self.scope.kind, key, old, new))

    async def _follow(self, version: str) -> str:
        """One stream. Returns the version from which the next one goes on."""
        stream = self._stream(version)
        try:
            async for event in stream:
                version = self._take(event) or version
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator
        return version

    def _take(self, event: Document) -> str:
        kind, item = str(event.get("type")), event.get("object") or {}
        if kind == "ERROR":
            raise of_status(int(item.get("code") or 500), item, f"watch of {self.scope.kind.plural}")
        self._failures = 0
        if kind in ("ADDED", "MODIFIED"):
            self.offer(item)
        elif kind == "DELETED":
            self._put(_key(item), _version(item), None)
        return str((item.get("metadata") or {}).get("resourceVersion") or "")

    async def _stream(self, version: str) -> AsyncIterator[Document]:
        scope = self.scope
        seconds = int(self._server_seconds * (0.8 + 0.2 * random.random()))
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, seconds)),
        }
        if scope.labels:
            query["labelSelector"] = scope.labels
        if scope.fields:
            query["fieldSelector"] = scope.fields
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=self._silence_seconds_max)
        accept = METADATA_ONLY if scope.metadata_only else JSON
        response = await self._client.open("GET", scope.kind.path(scope.namespace), query, None, JSON, accept, timeout)
        with contextlib.closing(response):
            if response.status >= 400:
                raise await _refusal(response, f"watch of {scope.kind.plural}")
            async for line in _lines(response):
                yield orjson.loads(line)


async def _refusal(response: aiohttp.ClientResponse, what: str) -> KubeError:
    raw = await response.read()
    try:
        document: Any = orjson.loads(raw)
    except ValueError:
        document = {}
    return of_status(response.status, document if isinstance(document, dict) else {}, what)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of a stream, however it is cut into pieces; one event is bounded."""
    rest = bytearray()
    async for piece in response.content.iter_any():
        rest += piece
        if b"\n" not in piece:
            if len(rest) > EVENT_BYTES_MAX:
                raise aiohttp.ClientPayloadError(f"an event of more than {EVENT_BYTES_MAX} bytes")
            continue
        *whole, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        for line in whole:
            if line.strip():
                yield line


def _key(item: Document) -> Key:
    metadata = item["metadata"]
    return str(metadata.get("namespace") or ""), str(metadata["name"])


def _version(item: Document) -> int:
    return _number(str(item["metadata"].get("resourceVersion") or ""))


def _number(version: str) -> int:
    """Versions of one kind can be compared; 0 for what is no number, which counts as newer than everything."""
    return int(version) if version.isdigit() else 0
