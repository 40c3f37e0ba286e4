"""An API server at the wire for the operator's client: objects in memory, versions, watches, and every way in which a real one fails."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration
from kvcommons_operator.kube.client import KubeClient

Document = dict[str, Any]
SECONDS_MAX = 10.0
POLL_SECONDS = 0.01


@dataclass
class Failure:
    """What a request is answered with instead. `status` 0: the connection is cut."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Document = field(default_factory=dict)
    method: str = ""
    """Only to this method; any if empty."""
    watch: bool = False
    """Only to watches."""


@dataclass
class FakeApi:
    """Collections by path. `failures` are used up in order by the requests that they fit."""

    url: str = ""
    version: int = 100
    oldest: int = 0
    """Watches from versions below it are answered 410 in the stream."""
    objects: dict[str, dict[str, Document]] = field(default_factory=dict)
    failures: deque[Failure] = field(default_factory=deque)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    bodies: list[Document] = field(default_factory=list)
    forbidden: tuple[str, ...] = ()
    """Paths that end in one of these are always answered 403."""
    silent: bool = False
    """Streams are opened and say nothing, not even that they end."""
    held: str = ""
    """Requests whose path has this in it wait until it is empty."""
    _streams: list[tuple[str, asyncio.Queue[Document | None]]] = field(default_factory=list)

    def put(self, collection: str, name: str, **more: Any) -> Document:
        known = name in self.objects.setdefault(collection, {})
        self.version += 1
        metadata = {"name": name, "namespace": "ns", "resourceVersion": str(self.version), **more.pop("metadata", {})}
        item = self.objects[collection][name] = {"metadata": metadata, **more}
        self._tell(collection, "MODIFIED" if known else "ADDED", item)
        return item

    def remove(self, collection: str, name: str) -> None:
        item = self.objects[collection].pop(name)
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self._tell(collection, "DELETED", item)

    def bookmark(self, collection: str) -> None:
        self.version += 1
        self._tell(collection, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def break_streams(self) -> None:
        for _, queue in self._streams:
            queue.put_nowait(None)

    @property
    def streaming(self) -> bool:
        return bool(self._streams)

    def requests(self, method: str, *, watch: bool = False) -> list[dict[str, str]]:
        return [query for asked, _, query in self.asked if asked == method and ("watch" in query) == watch]

    def _tell(self, collection: str, kind: str, item: Document) -> None:
        for path, queue in self._streams:
            if path == collection:
                queue.put_nowait({"type": kind, "object": json.loads(json.dumps(item))})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append((request.method, request.path, query))
        if request.can_read_body:
            self.bodies.append(json.loads(await request.read()))
        if request.path.endswith(self.forbidden):
            return _status(403, "Forbidden")
        if self.held:
            await until(lambda: self.held not in request.path or not self.held)
        failure = self._failure(request.method, "watch" in query)
        if failure is not None:
            if not failure.status:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            return web.json_response(failure.body, status=failure.status, headers=failure.headers)
        if "watch" in query:
            return await self._watch(request, int(query["resourceVersion"]))
        if request.method == "GET":
            return self._read(request.path, query)
        return self._write(request)

    def _failure(self, method: str, watch: bool) -> Failure | None:
        if not self.failures:
            return None
        first = self.failures[0]
        if (first.method and first.method != method) or (first.watch and not watch):
            return None
        return self.failures.popleft()

    def _read(self, path: str, query: Mapping[str, str]) -> web.Response:
        if path in self.objects:
            items = sorted(self.objects[path].values(), key=lambda item: str(item["metadata"]["name"]))
            start, limit = int(query.get("continue") or 0), int(query.get("limit") or 500)
            page, following = items[start : start + limit], start + limit
            metadata = {"resourceVersion": str(self.version)}
            if following < len(items):
                metadata["continue"] = str(following)
            return web.json_response({"metadata": metadata, "items": page})
        collection, _, name = path.rpartition("/")
        found = self.objects.get(collection, {}).get(name)
        return web.json_response(found) if found is not None else _status(404, "NotFound")

    def _write(self, request: web.Request) -> web.Response:
        body = self.bodies[-1]
        collection, _, name = request.path.rpartition("/")
        if request.method == "POST":
            collection, name = request.path, str(body["metadata"]["name"])
            if name in self.objects.get(collection, {}):
                return _status(409, "AlreadyExists")
        known = self.objects.get(collection, {}).get(name)
        if request.method in ("PUT", "DELETE") and known is None:
            return _status(404, "NotFound")
        if request.method == "DELETE":
            self.remove(collection, name)
            return web.json_response({"kind": "Status", "status": "Success"})
        told = body["metadata"].get("resourceVersion")
        if known is not None and told is not None and told != known["metadata"]["resourceVersion"]:
            return _status(409, "Conflict")
        metadata = {key: value for key, value in body.get("metadata", {}).items() if key != "resourceVersion"}
        rest = {key: value for key, value in body.items() if key not in ("metadata", "apiVersion", "kind")}
        return web.json_response(self.put(collection, name, metadata=metadata, **rest))

    async def _watch(self, request: web.Request, since: int) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[Document | None] = asyncio.Queue()
        self._streams.append((request.path, queue))
        try:
            if since < self.oldest:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                queue.put_nowait({"type": "ERROR", "object": gone})
                queue.put_nowait(None)
            for item in self.objects.get(request.path, {}).values() if since >= self.oldest else ():
                if int(item["metadata"]["resourceVersion"]) > since:
                    queue.put_nowait({"type": "MODIFIED", "object": json.loads(json.dumps(item))})
            while (event := await queue.get()) is not None:
                if not self.silent:
                    raw = json.dumps(event).encode() + b"\n"
                    await response.write(raw[:7])
                    await response.write(raw[7:])
        except ConnectionResetError:
            return response
        finally:
            self._streams.remove((request.path, queue))
        return response


def _status(code: int, reason: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": reason}, status=code)


@asynccontextmanager
async def fake_api() -> AsyncIterator[tuple[FakeApi, KubeClient]]:
    """A server and a client of it, which does not wait between attempts more than it must."""
    api = FakeApi()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = KubeClient(ApiClient(Configuration(host=api.url)), rng=lambda: 0.0)
    try:
        yield api, client
    finally:
        api.break_streams()
        await client.close()
        await runner.cleanup()


async def until(condition: Any) -> None:
    """Waits for what another task is about to do; it has no way to call back."""
    async with asyncio.timeout(SECONDS_MAX):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(POLL_SECONDS)
