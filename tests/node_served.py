"""A running control API over the fake core, for tests of its HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from aiohttp import web
from kvcommons_node.api.server import Access, Api
from kvcommons_node.cluster import Credentials
from kvcommons_node.control import Control
from kvcommons_node.engines import Engine, Engines
from kvcommons_node.model_names import ModelNames
from kvcommons_node.pinning import Pinning
from kvcommons_node.pool_view import NoPool, PoolView
from kvcommons_node.pump import EventPump
from kvcommons_node.size import Sizing
from node_fakes import FakeCore, FakeIndex, FakeStart

SECRET = bytes(32)
PINNED_BYTES_MAX = 4 * 4_096
OPEN = Access(token=None, loopback=True)


class Served:
    """A running control API and what is behind it."""

    def __init__(
        self, url: str, http: aiohttp.ClientSession, core: FakeCore, index: FakeIndex, control: Control
    ) -> None:
        self.url, self.http, self.core, self.index, self.control = url, http, core, index, control
        self.pump = EventPump(core, index, control.node_metrics, control.reports, control.feed, control.models)

    async def get(self, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
        async with self.http.get(self.url + path, **options) as response:
            return response.status, await response.json()

    async def post(self, path: str, body: object, **options: Any) -> tuple[int, dict[str, Any]]:
        async with self.http.post(self.url + path, json=body, **options) as response:
            return response.status, await response.json()


async def job_of(node: Served, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            job: dict[str, Any] = (await node.get(f"/v1/jobs?job={job_id}"))[1]["jobs"][0]
            if job["state"] not in ("waiting", "running"):
                return job
            await asyncio.sleep(0.01)


Serve = Callable[..., Coroutine[Any, Any, Served]]


async def serve_in(
    stack: AsyncExitStack, access: Access = OPEN, pool: PoolView | None = None, engines: Sequence[Engine] = ()
) -> Served:
    """Serves until the stack is left."""
    core, index, pool = FakeCore(), FakeIndex(), pool or NoPool()
    stack.callback(core.stop)
    made = Engines(engines, pool, "node-a")
    stack.push_async_callback(made.close)
    control = Control(
        core,
        index,
        Pinning(core, None, PINNED_BYTES_MAX),
        models=ModelNames(),
        pool=pool,
        engines=made,
        credentials=Credentials(),
        sizing=Sizing(FakeStart(Path(stack.enter_context(TemporaryDirectory()))), lambda: None),
        node_id="node-a",
        version="0.1.0",
        socket_path="/run/x.sock",
        multi_tenant=False,
        namespace_secret=SECRET,
    )
    control.set_serving(True)
    stack.push_async_callback(control.close)
    runner = web.AppRunner(Api(control, access, "0.1.0").application(), access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    http = await stack.enter_async_context(aiohttp.ClientSession())
    return Served(f"http://127.0.0.1:{runner.addresses[0][1]}", http, core, index, control)
