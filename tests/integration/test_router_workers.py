"""The router as a process: its command line, several workers with one truth, draining, crashes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from router_support import (
    WAIT_SECONDS_MAX,
    Call,
    Client,
    Engine,
    Reply,
    chat,
    engines_of,
    on_uvloop,
    request,
)

LISTENING = "listening on http://127.0.0.1:"


@dataclass
class Process:
    """A router in processes of its own."""

    process: asyncio.subprocess.Process
    port: int = 0
    log: list[str] = field(default_factory=list)
    output: bytes = b""
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        """A new connection, closed at the latest with the router."""
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.clients[-1]

    async def ask(self, body: object, *, path: str = "/v1/chat/completions", method: str = "POST") -> Reply:
        """A request on a connection of its own."""
        client = await self.client()
        try:
            return await client.ask(body, path=path, method=method)
        finally:
            client.close()

    async def metrics(self) -> dict[str, float]:
        """Every sample that /metrics shows now."""
        text = (await self.ask(b"", path="/metrics", method="GET")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {f"{name}".removeprefix("kvcommons_router_"): float(value) for name, _, value in lines}

    async def healthy(self) -> None:
        """Waits until every engine is known to serve."""
        for _ in range(400):
            if (await self.ask(b"", path="/health", method="GET")).status == 200:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the router did not become healthy")

    async def workers(self, count: int) -> list[int]:
        """Waits for so many serving workers; their process ids."""
        for _ in range(1000):
            if (await self.metrics())["workers"] == count:
                return children_of(self.process.pid)
            await asyncio.sleep(0.01)
        raise AssertionError(f"there are no {count} workers")

    async def deaf(self) -> None:
        """Waits until nobody takes new connections."""
        for _ in range(1000):
            try:
                (await self.client()).close()
            except ConnectionRefusedError:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the router still listens")

    async def ended(self) -> int:
        """Waits for the end; the exit status."""
        return await asyncio.wait_for(self.process.wait(), WAIT_SECONDS_MAX)


@asynccontextmanager
async def router(
    engines: list[Engine], *flags: str, environment: dict[str, str] | None = None
) -> AsyncIterator[Process]:
    """`kvcommons router` until the end of the block."""
    instances = [f"--instance=name={engine.name},url={engine.url},model=m" for engine in engines]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kvcommons_router",
        "--listen=127.0.0.1:0",
        *instances,
        *flags,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    found = Process(process)
    readers = [asyncio.ensure_future(_follow(found)), asyncio.ensure_future(_collect(found))]
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not any(LISTENING in line for line in found.log):
                assert process.returncode is None, found.log
                await asyncio.sleep(0.01)
        line = next(line for line in found.log if LISTENING in line)
        found.port = int(line.partition(LISTENING)[2].partition(",")[0])
        yield found
    finally:
        for client in found.clients:
            client.writer.transport.abort()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await asyncio.gather(*readers)


async def _follow(found: Process) -> None:
    assert found.process.stderr is not None
    async for line in found.process.stderr:
        found.log.append(line.decode())


async def _collect(found: Process) -> None:
    assert found.process.stdout is not None
    found.output = await found.process.stdout.read()


@on_uvloop
async def test_two_workers_tell_one_truth() -> None:
    """Whichever worker answers /metrics or /health speaks for both."""
    async with engines_of("a", "b") as engines, router(engines, "--workers=2") as process:
        await process.workers(2)
        await process.healthy()
        clients = [await process.client() for _ in range(16)]
        for number, client in enumerate(clients):
            for _ in range(5):
                assert (await client.ask(chat(f"text {number}"))).status == 200
        for _ in range(4):
            metrics = await process.metrics()
            assert metrics['requests_total{model="m",status="200"}'] == 80
            assert metrics['instance_up{instance="a"}'] == 1
            health = (await process.ask(b"", path="/health", method="GET")).json
            assert health == {"status": "ok", "models": {"m": {"instances": 2, "up": 2}}, "workers": 2}
        for client in clients:
            client.close()


@on_uvloop
async def test_a_worker_that_dies_is_replaced_and_no_count_is_lost() -> None:
    """kill -9 of one worker: another one starts, counters go on, gauges of the dead one are gone."""
    async with engines_of("a") as engines, router(engines, "--workers=2") as process:
        pids = await process.workers(2)
        clients = [await process.client() for _ in range(8)]
        for client in clients:
            assert (await client.ask(chat())).status == 200
            client.close()
        assert (await process.metrics())['requests_total{model="m",status="200"}'] == 8
        os.kill(pids[1], signal.SIGKILL)
        for _ in range(1000):
            try:
                metrics = await process.metrics()
            except (OSError, asyncio.IncompleteReadError):  # it was on its way to the dead one
                continue
            if metrics["worker_restarts_total"] == 1 and metrics["workers"] == 2:
                break
            await asyncio.sleep(0.01)
        assert metrics["worker_restarts_total"] == 1
        assert {name: value for name, value in metrics.items() if name.startswith("requests_total")} == {
            'requests_total{model="m",status="200"}': 8
        }
        assert set(pids) != set(await process.workers(2))


@pytest.mark.parametrize("workers", [1, 2])
@on_uvloop
async def test_sigterm_drains(workers: int) -> None:
    """After SIGTERM nothing new is taken, what is under way ends whole, and the process ends well."""
    going = asyncio.Event()

    async def slow(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b"first")
        await going.wait()
        await call.chunk(b"last")
        await call.end_stream()

    async with engines_of("a") as engines:
        engines[0].script = slow
        async with router(engines, f"--workers={workers}") as process:
            await process.workers(workers)
            idle, busy = await process.client(), await process.client()
            await idle.ask(b"", path="/v1/models", method="GET")
            await busy.send(request(chat(stream=True)))
            await busy.head()
            process.process.send_signal(signal.SIGTERM)
            assert await idle.closed() == b""
            await process.deaf()
            going.set()
            assert await busy.closed() == b"5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n"
            assert await process.ended() == 0


@on_uvloop
async def test_draining_has_an_end() -> None:
    """A request that outlasts the time for draining is cut, and the process ends."""

    async def endless(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b"x")
        await call.gone.wait()

    async with engines_of("a") as engines:
        engines[0].script = endless
        async with router(engines, "--drain-seconds=0.2") as process:
            client = await process.client()
            await client.send(request(chat(stream=True)))
            await client.head()
            process.process.send_signal(signal.SIGTERM)
            assert await process.ended() == 0
            client.close()


@on_uvloop
async def test_workers_end_with_their_supervisor() -> None:
    """kill -9 of the supervisor leaves no worker behind."""
    async with engines_of("a") as engines, router(engines, "--workers=2") as process:
        pids = await process.workers(2)
        process.process.kill()
        await process.ended()
        for _ in range(1000):
            if all(state_of(pid) == "Z" for pid in pids):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("a worker is left")


def children_of(pid: int) -> list[int]:
    """The process ids of a process' children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state_of(pid: int) -> str:
    """A process' state as /proc shows it; a process that is gone counts as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@on_uvloop
async def test_the_access_log_is_json_lines(tmp_path: Path) -> None:
    """With --access-log each request is one object on standard output, flushed at the end."""
    config = tmp_path / "router.toml"
    async with engines_of("a") as engines:
        config.write_text(
            f'[router]\naccess_log = true\n[[router.instances]]\nname = "x"\nurl = "{engines[0].url}"\nmodel = "m"\n'
            "[node]\narena_bytes = 1\n"
        )
        async with router([], f"--config={config}", environment={"KVCOMMONS_ROUTER__LOG_LEVEL": "debug"}) as process:
            reply = await process.ask(chat())
            process.process.send_signal(signal.SIGTERM)
            assert await process.ended() == 0
    (line,) = process.output.splitlines()
    record = json.loads(line)
    assert record["request_id"] == reply.header("x-request-id")
    assert (record["status"], record["instance"], record["tenant"], record["attempts"]) == (200, "x", "default", 1)


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ([], 2, "give at least one"),
        (["--instance=name=a,url=http://h:1"], 2, "serves no model"),
        (["--instance=name=a,url=https://h:1,model=m"], 2, "http://HOST:PORT"),
        (["--instance=name=a,ulr=http://h:1,model=m"], 2, "there is no such key"),
        (["--instance=name=a,url=http://h:1,model=m", "--listen=8000"], 2, "HOST:PORT"),
        (["--instance=name=a,url=http://h:1,model=m", "--listen=203.0.113.7:80"], 1, "can't be listened on"),
        (["--instance=name=a,url=http://h:1,model=m", "--api-keys=/nowhere"], 2, "/nowhere can't be read"),
        (["--instance=name=a,url=http://h:1,model=m", "--redis=http://x"], 2, "begin it with"),
        (["--config=/nowhere.toml"], 2, "/nowhere.toml"),
    ],
)
def test_settings_that_cannot_be_used_are_named(flags: list[str], status: int, words: str, tmp_path: Path) -> None:
    """One clear line on standard error and a status, no trace of the program's inside."""
    done = subprocess.run(
        [sys.executable, "-m", "kvcommons_router", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (status, True, False), done.stderr
