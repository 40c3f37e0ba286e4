"""The router as processes of its own, and what they log, show and do."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router_support import WAIT_SECONDS_MAX, Client, Engine, Reply

LISTENING = re.compile(r"listening on https?://127\.0\.0\.1:(\d+)")


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

    async def health(self) -> Any:
        """What /health says, with its status."""
        reply = await self.ask(b"", path="/health", method="GET")
        return reply.json | {"code": reply.status}

    async def shows(self, text: str) -> None:
        """Waits until a line of the log holds a text."""
        for _ in range(1000):
            if any(text in line for line in self.log):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"not in the log: {text}\n{''.join(self.log)}")

    async def counts(self, name: str, wanted: float) -> None:
        """Waits until a metric has a value."""
        for _ in range(1000):
            if (await self.metrics()).get(name) == wanted:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} did not become {wanted}")

    async def gone(self, name: str) -> None:
        """Waits until no metric speaks of an instance, whichever worker is asked."""
        quiet = 0
        for _ in range(1000):
            quiet = 0 if any(f'replica="{name}"' in line for line in await self.metrics()) else quiet + 1
            if quiet == 6:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} is still there")

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
    engines: Sequence[Engine], *flags: str, environment: dict[str, str] | None = None
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
            while not any(map(LISTENING.search, found.log)):
                assert process.returncode is None, found.log
                await asyncio.sleep(0.01)
        said = next(filter(None, map(LISTENING.search, found.log)))
        found.port = int(said[1])
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


def children_of(pid: int) -> list[int]:
    """The process ids of a process' children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state_of(pid: int) -> str:
    """A process' state as /proc shows it; a process that is gone counts as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
