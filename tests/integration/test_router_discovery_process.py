"""The router with two workers and pods that come and go: what clients see of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fake_kube import NAMESPACE, SELECTOR, FakeKube, fake_kube, pod
from router_process import Process, router
from router_support import Engine, chat, on_uvloop, until


@asynccontextmanager
async def pods_of(*names: str) -> AsyncIterator[list[Engine]]:
    """Engines that share a port, each on a loopback address of its own, as pods have addresses of their own."""
    engines = [Engine(name, host=f"127.9.0.{at + 1}") for at, name in enumerate(names)]
    for engine in engines:
        engine.port = engines[0].port
        await engine.start()
    try:
        yield engines
    finally:
        for engine in engines:
            await engine.stop()


@asynccontextmanager
async def discovering(kube: FakeKube, folder: Path, port: int, *flags: str, workers: int = 2) -> AsyncIterator[Process]:
    """A router that looks for its instances there."""
    kubernetes = {
        "namespace": NAMESPACE,
        "selector": SELECTOR,
        "port": port,
        "model": "m",
        "api": kube.url,
        "token_file": str(folder / "token"),
        "ca_file": str(folder / "ca.crt"),
    }
    environment = {"KVCOMMONS_ROUTER__KUBERNETES": json.dumps(kubernetes)}
    async with router([], f"--workers={workers}", *flags, environment=environment) as process:
        yield process


async def served(process: Process, *, seconds_max: float) -> None:
    """Waits until requests are answered, in whichever worker they are."""
    end = asyncio.get_running_loop().time() + seconds_max
    good = 0
    while good < 8:
        good = good + 1 if (await process.ask(chat())).status == 200 else 0
        assert asyncio.get_running_loop().time() < end, f"not served within {seconds_max} s"


@on_uvloop
async def test_pods_become_instances_and_a_router_without_any_says_so(tmp_path: Path) -> None:
    """With no pod it is not ready and answers 503; a ready pod is used within a second, in both workers."""
    async with (
        pods_of("a", "b") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port) as process,
    ):
        await process.workers(2)
        health = await process.health()
        assert (health["code"], health["status"], health["models"]) == (
            503,
            "unavailable",
            {"m": {"instances": 0, "up": 0}},
        )
        refused = await process.ask(chat())
        assert (refused.status, refused.header("retry-after"), refused.error["code"]) == (503, "5", "no_instance_ready")
        await until(lambda: kube.watchers == 1, "a watch")
        kube.put(pod("a", engines[0].host))
        await served(process, seconds_max=1.0)
        await process.healthy()
        assert (await process.metrics())['instance_up{instance="a"}'] == 1
