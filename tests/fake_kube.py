"""An API server for pods at the wire: list by pages, watch, bookmarks, and every way in which a real one fails."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Pod = dict[str, Any]
NAMESPACE = "engines"
SELECTOR = "app=engine"


def pod(name: str, port_or_ip: str = "127.0.0.1", *, ready: bool = True, restarts: int = 0, **metadata: Any) -> Pod:
    """A running pod as the API shows it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"app": "engine"}, **metadata},
        "spec": {"nodeName": f"node-of-{name}"},
        "status": {
            "phase": "Running",
            "podIP": port_or_ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "engine", "restartCount": restarts}],
        },
    }


@dataclass
class Failure:
    """What the next request is answered with instead."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    verb: str = ""
    """list or watch; either where empty."""


@dataclass
class FakeKube:
    """The server's state; a test changes it, watchers hear of it."""

    url: str = ""
    pods: dict[str, Pod] = field(default_factory=dict)
    version: int = 100
    tokens: set[str] = field(default_factory=set)
    """Those that are let in; everybody where there are none."""
    failures: deque[Failure] = field(default_factory=deque)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(verb, token) of each request."""
    page_pods: int = 500
    _oldest: int = 0
    _history: list[tuple[int, bytes]] = field(default_factory=list)
    _watchers: dict[asyncio.Queue[bytes | None], web.Request] = field(default_factory=dict)

    # What a test does.

    def put(self, one: Pod) -> None:
        """A pod came or changed."""
        name = one["metadata"]["name"]
        kind = "MODIFIED" if name in self.pods else "ADDED"
        self.version += 1
        stored = copy.deepcopy(one)
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.pods[name] = stored
        self._tell(kind, stored)

    def begin_to_delete(self, name: str) -> None:
        """A pod is to end; its containers have their time."""
        one = self.pods[name]
        one["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        self.put(one)

    def delete(self, name: str) -> None:
        """A pod is gone."""
        one = self.pods.pop(name)
        self.version += 1
        one["metadata"]["resourceVersion"] = str(self.version)
        self._tell("DELETED", one)

    def bookmark(self) -> None:
        """Watchers hear how far they are."""
        self.version += 1
        self._tell("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(self.version)}})

    def say(self, line: bytes) -> None:
        """Watchers get these bytes."""
        for watcher in self._watchers:
            watcher.put_nowait(line)

    def cut(self) -> None:
        """Every watch ends without an end, as by a lost connection."""
        for watcher in self._watchers:
            watcher.put_nowait(None)

    def forget_history(self) -> None:
        """A watch can only begin from now on."""
        self._oldest = self.version + 1
        self.version += 1
        self._history.clear()

    @property
    def watchers(self) -> int:
        """Watches that are open."""
        return sum(one.transport is not None and not one.transport.is_closing() for one in self._watchers.values())

    def count(self, verb: str) -> int:
        """How often it was asked."""
        return sum(one == verb for one, _ in self.asked)

    def _tell(self, kind: str, one: Pod) -> None:
        line = json.dumps({"type": kind, "object": one}).encode() + b"\n"
        self._history.append((self.version, line))
        self.say(line)

    # What it answers.

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """The one path that there is."""
        verb = "watch" if request.query.get("watch") == "1" else "list"
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.asked.append((verb, token))
        if self.tokens and token not in self.tokens:
            return _status(401, "Unauthorized")
        if self.failures and self.failures[0].verb in ("", verb):
            failure = self.failures.popleft()
            return _status(failure.status, "scripted", failure.headers)
        if request.match_info["namespace"] != NAMESPACE or request.query.get("labelSelector") != SELECTOR:
            return _status(404, "there are other pods")
        return await self._watch(request) if verb == "watch" else self._list(request)

    def _list(self, request: web.Request) -> web.StreamResponse:
        begin = int(request.query.get("continue", "0"))
        size = min(int(request.query["limit"]), self.page_pods)
        items = [one for _, one in sorted(self.pods.items())]
        metadata = {"resourceVersion": str(self.version)}
        if begin + size < len(items):
            metadata["continue"] = str(begin + size)
        return web.json_response({"kind": "PodList", "metadata": metadata, "items": items[begin : begin + size]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for line in self._since(int(request.query["resourceVersion"])):
            queue.put_nowait(line)
        self._watchers[queue] = request
        try:
            while (said := await queue.get()) is not None:
                await response.write(said)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass
        finally:
            del self._watchers[queue]
        return response

    def _since(self, version: int) -> Iterator[bytes]:
        if version < self._oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            yield json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"
            return
        yield from (line for at, line in self._history if at > version)


def _status(code: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code, headers=headers)


@asynccontextmanager
async def fake_kube() -> AsyncIterator[FakeKube]:
    """A server until the end of the block."""
    found = FakeKube()
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/{namespace}/pods", found.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}"
    try:
        yield found
    finally:
        found.cut()
        await runner.cleanup()
