"""/metrics, /healthz and /readyz."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from kvcommons_core.errors import StartRefusedError

from kvcommons_operator.metrics import OperatorMetrics

State = Mapping[str, Any]


async def serve(
    host: str, port: int, metrics: OperatorMetrics, ready: Callable[[], State], healthy: Callable[[], State]
) -> tuple[web.AppRunner, int]:
    """Returns the runner, to be cleaned up, and the port. :raises StartRefusedError: if the address can't be used."""

    async def show_metrics(_: web.Request) -> web.Response:
        body, kind = metrics.render()
        return web.Response(body=body, headers={"Content-Type": kind})

    async def show_ready(_: web.Request) -> web.Response:
        return _answer(ready())

    async def show_healthy(_: web.Request) -> web.Response:
        return _answer(healthy())

    app = web.Application(client_max_size=1 << 16)
    app.add_routes(
        [web.get("/metrics", show_metrics), web.get("/readyz", show_ready), web.get("/healthz", show_healthy)]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise StartRefusedError(f"http_port: {host}:{port} cannot be used: {error.strerror}; set another") from error
    return runner, int(runner.addresses[0][1])


def _answer(state: State) -> web.Response:
    """`ok` decides the status; the rest is for people."""
    return web.Response(
        status=200 if state.get("ok") else 503, text=json.dumps(dict(state)) + "\n", content_type="application/json"
    )
