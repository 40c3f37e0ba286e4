"""What the index tests share: a plain client, a clock in the hand, a switch in front of servers, members without a network."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from kvcommons_core.index import IndexConnection, MemberInfo, MemberKind, Membership, MembershipKeeper, Published
from kvcommons_core.redis_server import RedisServer
from kvcommons_core.settings import IndexSettings

WAIT_SECONDS_MAX = 20.0


class RawClient:
    """Redis' protocol in forty lines: blocking, for tests alone, so that what it sees owes nothing to the product's client."""

    def __init__(self, server: RedisServer) -> None:
        self.address = (server.host, server.port)
        self._socket = socket.create_connection(self.address, timeout=10)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def __call__(self, *command: bytes | str | float) -> Any:
        words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
        self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        reply = self._read()
        return reply.decode() if isinstance(reply, bytes) and words[0].upper() == b"INFO" else reply

    def info(self, section: str, name: str) -> str:
        lines: list[str] = self("INFO", section).split("\r\n")
        return next(line.split(":", 1)[1] for line in lines if line.startswith(f"{name}:"))

    def _read(self) -> Any:
        line = self._file.readline().rstrip(b"\r\n")
        if not line:
            raise ConnectionResetError(f"the server at {self.address} closed the connection")
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b":":
            return int(rest)
        if int(rest) < 0:
            return None
        if kind == b"$":
            return self._file.read(int(rest) + 2)[:-2]
        return [self._read() for _ in range(int(rest))]


class HandClock:
    """Unix time that moves when a test says so."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


async def until(condition: Callable[[], object] | Callable[[], Awaitable[object]], what: str) -> None:
    """Waits for a condition, and fails with its name instead of hanging."""
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS_MAX
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {WAIT_SECONDS_MAX} s: {what}")
        await asyncio.sleep(0.01)


def node(name: str) -> MemberInfo:
    return MemberInfo(name=name, kind=MemberKind.NODE, address=f"{name}:9470", node=name)


def engine(name: str) -> MemberInfo:
    return MemberInfo(name=name, kind=MemberKind.ENGINE, address=f"http://{name}:8000", model="m")


@dataclass(slots=True)
class Held:
    """A member with a keeper of its own, ticked by hand."""

    connection: IndexConnection
    keeper: MembershipKeeper
    member: Membership
    reasons: list[str]

    @property
    def identity(self) -> tuple[int, int]:
        assert self.member.tenure is not None
        return self.member.tenure.slot, self.member.tenure.epoch

    async def tick(self) -> None:
        await self.keeper.tick()


def hold(
    settings: IndexSettings, info: MemberInfo, clock: Callable[[], float], *, shared: bool = False, seed: int = 0
) -> Held:
    """A member of its own process, as it were."""
    connection = IndexConnection(settings)
    reasons: list[str] = []
    keeper = MembershipKeeper(connection, settings, clock=clock, rng=random.Random(seed or info.name))
    return Held(connection, keeper, keeper.add(info, shared=shared, on_epoch=reasons.append), reasons)


class FakeStore:
    """What a node holds, with the inventory's cursor: page by page in the order of insertion."""

    def __init__(self, chunks: int = 0, *, first: int = 0) -> None:
        self.items = {n: Published(chunk_key(n), (10_000 + n,)) for n in range(first, first + chunks)}
        self.calls = 0

    def inventory(self, cursor: int, items_max: int) -> tuple[list[Published], int]:
        self.calls += 1
        page = list(self.items.values())[cursor : cursor + items_max]
        following = cursor + len(page)
        return page, following if following < len(self.items) else 0


def chunk_key(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(24)


class Switch:
    """A port that leads to one server or to another: what a failover looks like to a client. With TLS in front, if it is asked for."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.port = 0
        self.target: tuple[str, int] | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead_to(self, server: RedisServer | None) -> None:
        """Leads new connections to a server (None: nowhere), and cuts the old ones."""
        self.target = (server.host, server.port) if server is not None else None
        self.cut()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with self._kept(writer):
            if self.target is None:
                return
            try:
                far_reader, far_writer = await asyncio.open_connection(*self.target)
            except OSError:  # the server behind is dead: the client sees a closed connection
                return
            with self._kept(far_writer):
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        self._tasks.discard(task)

    @contextmanager
    def _kept(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:  # cut in the middle: what a failover does
        pass
    writer.transport.abort()
