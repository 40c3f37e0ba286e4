"""A daemon on the test's event loop, with a real Redis or none: the core is a fake at its seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from kvcommons_core.index.schema import Names
from kvcommons_core.settings import IndexSettings, NodeSection, NodeSettings
from kvcommons_node.__main__ import make_index, make_pool
from kvcommons_node.daemon import Daemon
from kvcommons_node.plan import make_plan
from node_fakes import FakeCore

NAMES = Names("kvc:test:")
SECONDS_MAX = 20.0
POLL_SECONDS = 0.01


class Running:
    """A daemon on the test's event loop, and ways to look at it."""

    def __init__(self, daemon: Daemon, core: FakeCore, http: aiohttp.ClientSession) -> None:
        self.daemon, self.core, self._http = daemon, core, http

    @property
    def url(self) -> str:
        host, port = self.daemon.http_address or ("", 0)
        return f"http://{host}:{port}"

    async def ready(self) -> dict[str, Any]:
        async with self._http.get(self.url + "/readyz") as response:
            assert response.status == 200
            answer: dict[str, Any] = await response.json()
            return answer

    async def place(self) -> tuple[int, int]:
        """Its slot and epoch."""
        index = (await self.ready())["index"]
        return index["slot"], index["epoch"]

    async def connected(self) -> bool:
        return bool((await self.ready())["index"]["state"] == "connected")

    async def disconnected(self) -> bool:
        return not await self.connected()

    async def post(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        async with self._http.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def clear_all(self) -> None:
        async with self._http.post(self.url + "/v1/clear", json={"all": True}) as response:
            assert response.status == 200


@asynccontextmanager
async def running(
    redis_url: str, core: FakeCore | None = None, node_id: str = "node-a", **more: Any
) -> AsyncIterator[Running]:
    """:param more: further settings of the node."""
    held = core or FakeCore()
    with TemporaryDirectory(prefix="kvn-") as folder:
        section = NodeSection(
            node_id=node_id,
            socket_path=f"{folder}/n.sock",
            state_dir=f"{folder}/s",
            holder_socket="none",
            arena_bytes=1 << 26,
            **{"control_port": 0, **more},
        )
        index = IndexSettings(url=redis_url, prefix=NAMES.prefix, connect_ms_max=500, call_ms_max=500)
        plan = make_plan(NodeSettings(node=section, index=index), "0.1.0")
        daemon = Daemon(plan, lambda _plan: held, make_index, make_pool)
        task = asyncio.create_task(daemon.run())
        serving = asyncio.create_task(daemon.serving.wait())
        await asyncio.wait({task, serving}, timeout=SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert daemon.serving.is_set(), task.exception() if task.done() else "the daemon did not serve in time"
            async with aiohttp.ClientSession() as http:
                yield Running(daemon, held, http)
        finally:
            serving.cancel()
            daemon.stop()
            await task


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another process is about to do; it has no way to call back."""
    async with asyncio.timeout(SECONDS_MAX):
        while not await condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(POLL_SECONDS)
