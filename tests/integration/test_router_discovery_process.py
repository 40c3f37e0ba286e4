"""The router with two workers and pods that come and go: what clients see of it."""

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fake_kube import NAMESPACE, SELECTOR, Failure, FakeKube, fake_kube, pod
from index_support import RawClient
from kvcommons_core.index import IndexConnection
from kvcommons_core.index.view import MembersView
from kvcommons_core.settings import IndexSettings
from router_process import Process, children_of, router
from router_support import Call, Engine, chat, on_uvloop, plain, request, until


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
        assert (await process.metrics())['instance_up{replica="a"}'] == 1


async def asked_until(process: Process, engine: Engine, *, seconds_max: float = 1.0) -> None:
    """Asks until an engine has got a request."""
    end = asyncio.get_running_loop().time() + seconds_max
    before = len(engine.calls)
    number = 0
    while len(engine.calls) == before:
        number += 1
        assert (await process.ask(chat(f"text {number}"))).status == 200
        assert asyncio.get_running_loop().time() < end, f"{engine.name} got nothing within {seconds_max} s"


@dataclass
class Load:
    """Clients that ask all the time, until the end of the block; what they were answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)

    async def more_of(self, name: str) -> None:
        """Waits until an engine answers once more."""
        before = self.engines[name]
        await until(lambda: self.engines[name] > before, f"{name} to answer")


@asynccontextmanager
async def under_load(process: Process, clients: int = 4) -> AsyncIterator[Load]:
    """Every answer is whole, whatever happens meanwhile."""
    found, over = Load(), asyncio.Event()

    async def ask(number: int) -> None:
        count = 0
        while not over.is_set():
            count += 1
            reply = await process.ask(chat(f"text {number} {count}"))
            found.statuses[reply.status] += 1
            if reply.status == 200:
                found.engines[reply.json["engine"]] += 1

    tasks = [asyncio.ensure_future(ask(number)) for number in range(clients)]
    try:
        yield found
    finally:
        over.set()
        await asyncio.gather(*tasks)


@on_uvloop
async def test_a_deleted_pod_ends_what_it_has_and_gets_nothing_new(tmp_path: Path) -> None:
    """Its streams come to their ends, while everything new goes elsewhere; then it is off the metrics."""
    going = asyncio.Event()

    async def stream(call: Call) -> None:
        if not call.json.get("stream"):
            await plain(call)
            return
        await call.begin_stream()
        await call.chunk(b"first")
        await going.wait()
        await call.chunk(b"last")
        await call.end_stream()

    async with (
        pods_of("a", "b") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port, "--policy=leastLoad") as process,
    ):
        for engine in engines:
            engine.script = stream
            kube.put(pod(engine.name, engine.host))
        await served(process, seconds_max=5.0)
        streams = [await process.client() for _ in range(8)]
        for client in streams:
            await client.send(request(chat(stream=True)))
            await client.head()
        busy = [len(engine.calls) for engine in engines]
        assert min(busy) > 0
        kube.begin_to_delete("a")
        await process.shows("a is leaving")
        await until(lambda: kube.watchers == 1, "a watch")
        await drained(process, "a")
        for number in range(20):
            assert (await process.ask(chat(f"text {number}"))).json["engine"] == "b"
        kube.delete("a")
        assert 'instance_up{replica="a"}' in await process.metrics()
        going.set()
        for client in streams:
            assert b"last" in await client.rest_of_chunks()
        await process.shows("a has left")
        await process.gone("a")
        assert (await process.health())["models"] == {"m": {"instances": 1, "up": 1}}


async def drained(process: Process, name: str) -> None:
    """Waits until both workers give an instance nothing new."""
    for _ in range(500):
        metrics = await process.metrics()
        if metrics['instances{state="leaving"}'] == 1:
            before = metrics[f'attempts_total{{replica="{name}",outcome="ok"}}']
            break
        await asyncio.sleep(0.01)
    quiet = 0
    for number in range(500):
        await process.ask(chat(f"probe {number}"))
        after = (await process.metrics())[f'attempts_total{{replica="{name}",outcome="ok"}}']
        quiet, before = (quiet + 1, before) if after == before else (0, after)
        if quiet == 10:
            return
    raise AssertionError(f"{name} still gets requests")


@on_uvloop
async def test_nobody_meets_an_error_while_pods_come_and_go(tmp_path: Path) -> None:
    """Under load in two workers, pods are added, deleted and killed; every request is answered by one that is there."""
    async with (
        pods_of("a", "b", "c") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port, "--policy=roundRobin") as process,
    ):
        a, b, c = engines
        kube.put(pod("a", a.host))
        kube.put(pod("b", b.host))
        await served(process, seconds_max=5.0)
        async with under_load(process) as load:
            await until(lambda: load.engines["a"] and load.engines["b"], "both to answer")
            for round_number in range(3):
                kube.put(pod("c", c.host, uid=f"c{round_number}"))
                await load.more_of("c")
                kube.begin_to_delete("a")
                await process.shows("a is leaving")
                await a.stop()
                kube.delete("a")
                await process.gone("a")
                await a.start()
                kube.put(pod("a", a.host, uid=f"a{round_number}"))
                await load.more_of("a")
                kube.begin_to_delete("c")
                kube.delete("c")
                await process.gone("c")
        assert set(load.statuses) == {200}, load.statuses
        assert (await process.metrics())["worker_restarts_total"] == 0


@on_uvloop
async def test_who_takes_a_place_begins_at_nothing(tmp_path: Path) -> None:
    """The cells of one that left are another's soon: no number of the first is ever seen as the second's."""
    async with (
        pods_of("a", "b") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port) as process,
    ):
        kube.put(pod("a", engines[0].host))
        await served(process, seconds_max=5.0)
        kube.delete("a")
        await process.gone("a")
        kube.put(pod("b", engines[1].host))
        await served(process, seconds_max=1.0)
        metrics = await process.metrics()
        assert metrics['attempts_total{replica="b",outcome="ok"}'] == len(engines[1].calls)
        assert metrics['requests_total{model="m",status="200"}'] == sum(len(engine.calls) for engine in engines)
        assert metrics["dispatched_requests" + '{replica="b"}'] == 0


@on_uvloop
async def test_a_pod_that_is_not_ready_is_out_and_comes_back(tmp_path: Path) -> None:
    """Not ready: nothing new within a second. Ready: used again, and what was counted goes on."""
    async with (
        pods_of("a", "b") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port, "--policy=roundRobin") as process,
    ):
        for engine in engines:
            kube.put(pod(engine.name, engine.host))
        await served(process, seconds_max=5.0)
        await asked_until(process, engines[0])
        kube.put(pod("a", engines[0].host, ready=False))
        await process.shows("a is not ready")
        for _ in range(500):
            if (await process.metrics())['instances{state="out"}'] == 1:
                break
        before = len(engines[0].calls)
        served_by_b = [(await process.ask(chat(f"text {number}"))).json["engine"] for number in range(20)]
        assert served_by_b[-10:] == ["b"] * 10
        kube.put(pod("a", engines[0].host))
        await asked_until(process, engines[0])
        assert (await process.metrics())['attempts_total{replica="a",outcome="ok"}'] > before


@on_uvloop
async def test_the_last_known_fleet_is_served_without_an_api_server(tmp_path: Path) -> None:
    """The API server refuses, then what watches it is killed: requests go on, and what changes then is heard."""
    async with (
        pods_of("a", "b") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port, "--policy=roundRobin") as process,
    ):
        kube.put(pod("a", engines[0].host))
        await served(process, seconds_max=5.0)
        kube.failures.extend([Failure(503)] * 4)
        kube.cut()
        async with under_load(process, clients=2) as load:
            await until(lambda: not kube.failures, "the failures to be met")
            await process.counts('discovery_errors_total{reason="server"}', 4)  # by the one that is killed next
            watcher = children_of(process.process.pid)[-1]
            os.kill(watcher, signal.SIGKILL)
            await process.shows("what watches Kubernetes")
            kube.put(pod("b", engines[1].host))
            await until(lambda: load.engines["b"], "b to answer")
        assert set(load.statuses) == {200}
        metrics = await process.metrics()
        assert metrics['discovery_errors_total{reason="server"}'] == 4
        assert (metrics["discovery_watching"], metrics["discovery_lists_total"]) == (1, 2)


async def replaced(process: Process) -> None:
    """Waits until two workers serve again."""
    for _ in range(1000):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # nobody listens, or it was with a dying one
            metrics = await process.metrics()
            if (metrics["worker_restarts_total"], metrics["workers"]) == (2, 2):
                return
        await asyncio.sleep(0.01)
    raise AssertionError("the workers are not replaced")


@on_uvloop
async def test_a_worker_that_is_replaced_knows_the_fleet_of_now(tmp_path: Path) -> None:
    """It takes the roster as it is when it starts, whatever happened while there was none in its place."""
    async with (
        pods_of("a", "b") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port) as process,
    ):
        kube.put(pod("a", engines[0].host))
        await served(process, seconds_max=5.0)
        first, second, *_ = children_of(process.process.pid)
        os.kill(first, signal.SIGKILL)
        os.kill(second, signal.SIGKILL)
        kube.put(pod("b", engines[1].host))
        kube.begin_to_delete("a")
        await process.shows("a is leaving")
        await replaced(process)
        await process.gone("a")
        assert {(await process.ask(chat(f"text {number}"))).json["engine"] for number in range(10)} == {"b"}


@on_uvloop
async def test_ranks_of_a_pod_are_asked_for_by_number(tmp_path: Path) -> None:
    """Two ranks of one pod are two instances at one address; each request says which it is for."""
    async with (
        pods_of("a") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port, "--policy=roundRobin", workers=1) as process,
    ):
        kube.put(pod("a", engines[0].host, annotations={"kvcommons.io/data-parallel-size": "2"}))
        await served(process, seconds_max=5.0)
        assert {call.headers["x-data-parallel-rank"] for call in engines[0].calls} == {"0", "1"}
        assert (await process.health())["models"] == {"m": {"instances": 2, "up": 2}}


@on_uvloop
async def test_a_restarted_engine_is_fenced_within_a_second(
    index_settings: IndexSettings, raw: RawClient, tmp_path: Path
) -> None:
    """A container that was started again, or a new pod of the old name: what was recorded of it is void for all routers."""
    redis = ("--redis", index_settings.url, "--prefix", index_settings.prefix)
    async with (
        pods_of("a", "b") as engines,
        fake_kube() as kube,
        discovering(kube, tmp_path, engines[0].port, *redis) as process,
    ):
        view = MembersView(IndexConnection(index_settings), index_settings)
        for engine in engines:
            kube.put(pod(engine.name, engine.host))
        await served(process, seconds_max=5.0)

        async def epoch(name: str) -> int | None:
            await view.poll()
            found = view.by_name.get(f"engine:{name}")
            return found.epoch if found is not None else None

        async def settled(name: str, before: int | None, seconds_max: float) -> int:
            end = asyncio.get_running_loop().time() + seconds_max
            while (now := await epoch(name)) is None or now == before:
                assert asyncio.get_running_loop().time() < end, f"{name} is not fenced"
                await asyncio.sleep(0.01)
            return now

        first, other = await settled("a", None, 5.0), await settled("b", None, 5.0)
        kube.put(pod("a", engines[0].host, ready=False, restarts=1))
        second = await settled("a", first, 1.0)
        assert second == (first + 1) % 65536  # two workers saw it, and it was fenced once
        kube.put(pod("a", engines[0].host, restarts=1))
        await asked_until(process, engines[0], seconds_max=5.0)
        kube.put(pod("a", engines[0].host, restarts=0, uid="another"))
        third = await settled("a", second, 1.0)
        assert third == (first + 2) % 65536
        kube.begin_to_delete("a")
        kube.delete("a")
        for _ in range(500):
            if await epoch("a") is None:
                break
            await asyncio.sleep(0.01)
        assert (await epoch("a"), await epoch("b")) == (None, other)
        await view._connection.close()
