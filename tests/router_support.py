"""A router in the test's own loop, engines that do what a test says, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import uvloop
from kvcommons_core.settings import IndexSettings
from kvcommons_router.app import App
from kvcommons_router.board import Board
from kvcommons_router.cells import Cells
from kvcommons_router.http_server import ClientConnection
from kvcommons_router.index_redis import RedisIndex, make_index
from kvcommons_router.metrics import Layout
from kvcommons_router.settings import InstanceSettings, RouterSection, RouterSettings
from kvcommons_router.sharing import Posts
from kvcommons_router.steward import Steward
from kvcommons_router.workers import authenticator

WAIT_SECONDS_MAX = 20.0
TEST_SECONDS_MAX = 60.0
MODEL = "m"
P = ParamSpec("P")


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a test on the loop that the router runs on."""

    @functools.wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TEST_SECONDS_MAX):
                await test(*arguments, **named)

        uvloop.run(bounded())

    return run


async def until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition, and fails with its name instead of hanging."""
    loop = asyncio.get_running_loop()
    end = loop.time() + WAIT_SECONDS_MAX
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"waited {WAIT_SECONDS_MAX} s for: {what}")
        await asyncio.sleep(0.005)


@dataclass
class Call:
    """A request as an engine saw it, and the hand to answer it."""

    engine: Engine
    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    gone: asyncio.Event

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int = 200, body: bytes = b'{"ok":true}', extra: bytes = b"") -> None:
        await self.send(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"
            % (status, len(body), extra, body)
        )

    async def begin_stream(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")


Script = Callable[[Call], Awaitable[None]]


async def plain(call: Call) -> None:
    """The default: a small JSON answer that names its engine."""
    await call.answer(body=json.dumps({"engine": call.engine.name}).encode())


@dataclass(eq=False)
class Engine:
    """A small HTTP server that runs a script for each request that is no health check."""

    name: str
    script: Script = plain
    healthy: bool = True
    port: int = 0
    host: str = "127.0.0.1"
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As a killed engine: nobody listens and every connection is gone."""
        if self.server is not None:
            self.server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self.server.wait_closed()
            self.server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._requests(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = True
        while True:
            head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
            if head.startswith(b"GET /health"):
                status = b"200 OK" if self.healthy else b"503 No"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            self.connections += first
            first = False
            call = Call(self, head, b"", writer, asyncio.Event())
            call.body = await reader.readexactly(int(call.headers["content-length"]))
            self.calls.append(call)
            await self._run(call, reader)
            if writer.is_closing():
                return

    async def _run(self, call: Call, reader: asyncio.StreamReader) -> None:
        """Runs the script, and notices at once if the router hangs up meanwhile."""
        script = asyncio.ensure_future(self.script(call))
        hangup = asyncio.ensure_future(_end(reader))
        try:
            await asyncio.wait((script, hangup), return_when=asyncio.FIRST_COMPLETED)
            if hangup.done() and not script.done():
                call.gone.set()
            await script
        except ConnectionError:
            call.gone.set()
            raise
        finally:
            hangup.cancel()
            script.cancel()


async def _end(reader: asyncio.StreamReader) -> None:
    """Returns when the other side has closed, reading nothing."""
    await until(lambda: reader.at_eof() or reader.exception() is not None, "the other side to close")


@dataclass
class Reply:
    """An answer as a client saw it."""

    status: int
    headers: list[tuple[str, str]]
    raw_body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name.lower()]
        assert len(found) < 2, f"{name} twice"
        return found[0] if found else None

    @property
    def body(self) -> bytes:
        """The body without its chunks."""
        if self.header("transfer-encoding") != "chunked":
            return self.raw_body
        rest, out = self.raw_body, b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size.partition(b";")[0], 16)
            if length == 0:
                return out
            out += rest[:length]
            rest = rest[length + 2 :]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


class Client:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Reply:
        """The next head."""
        raw = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS_MAX)).decode("latin-1")
        lines = raw[:-4].split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        return Reply(int(lines[0].split(" ")[1]), headers, b"")

    async def reply(self, *, head_only: bool = False) -> Reply:
        """The next whole answer, by its framing."""
        reply = await self.head()
        if head_only or reply.status in (204, 304):
            return reply
        length = reply.header("content-length")
        if length is not None:
            reply.raw_body = await asyncio.wait_for(self.reader.readexactly(int(length)), WAIT_SECONDS_MAX)
        elif reply.header("transfer-encoding") == "chunked":
            reply.raw_body = await self._chunks()
        else:
            reply.raw_body = await asyncio.wait_for(self.reader.read(), WAIT_SECONDS_MAX)
        return reply

    async def _chunks(self) -> bytes:
        raw = b""
        while True:
            line = await asyncio.wait_for(self.reader.readuntil(b"\r\n"), WAIT_SECONDS_MAX)
            raw += line
            length = int(line.partition(b";")[0], 16)
            if length == 0:
                while line != b"\r\n":
                    line = await self.reader.readuntil(b"\r\n")
                    raw += line
                return raw
            raw += await self.reader.readexactly(length + 2)

    async def rest_of_chunks(self) -> bytes:
        """The chunks of an answer whose head has been read, to the last one."""
        return await self._chunks()

    async def closed(self) -> bytes:
        """What still comes until the connection ends."""
        return await asyncio.wait_for(self.reader.read(), WAIT_SECONDS_MAX)

    async def ask(self, body: object, **options: Any) -> Reply:
        """A whole request and its whole answer."""
        await self.send(request(body, **options))
        return await self.reply()

    def close(self) -> None:
        self.writer.close()


def request(
    body: object,
    *,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    version: str = "1.1",
) -> bytes:
    """A request's bytes; a body that is not bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Host": "router", "Content-Length": str(len(raw))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode("latin-1") + raw


def chat(text: str = "hello", **more: object) -> dict[str, object]:
    """A chat request's body."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


@dataclass
class Router:
    """A router that runs in this loop."""

    app: App
    port: int
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        """A new connection, closed at the latest with the router."""
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.clients[-1]

    async def ask(self, body: object, **options: Any) -> Reply:
        """A request on a connection of its own."""
        client = await self.client()
        try:
            return await client.ask(body, **options)
        finally:
            client.close()

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, as /metrics would show it."""
        total = 0.0
        for family in self.app.layout.families:
            if family.name != f"kvcommons_router_{name}":
                continue
            for first, own in family.blocks(self.app.context.names()):
                for at, others in enumerate(family.combinations()):
                    if labels.items() <= dict(own + others).items():
                        total += self.app.cells.total(first + at * family.stride)
        return total


def settings_for(
    engines: Sequence[Engine],
    *,
    index: IndexSettings | None = None,
    nodes: Mapping[str, str] | None = None,
    **more: Any,
) -> RouterSettings:
    """Settings of a router with these engines."""
    instances = tuple(
        InstanceSettings(name=engine.name, url=engine.url, model=MODEL, node=(nodes or {}).get(engine.name, ""))
        for engine in engines
    )
    section = RouterSection.model_validate({"listen": "127.0.0.1:0", "instances": instances} | more)
    return RouterSettings(router=section, index=index or IndexSettings())


@asynccontextmanager
async def running(
    settings: RouterSettings, *, checks: bool = False, row: int = 0, posts: Posts | None = None
) -> AsyncIterator[Router]:
    """A router until the end of the block; `checks` also runs its health checks. With `posts` it is one worker of several."""
    layout = Layout()
    cells = Cells(settings.router.workers, layout.columns)
    board = Board()
    steward = Steward(settings.router, layout, cells, board, row=row)
    steward.poll(0.0)
    auth = authenticator(settings.router)
    app = App(settings, layout=layout, cells=cells, row=row, auth=auth, make_index=make_index, board=board, posts=posts)
    loop = asyncio.get_running_loop()
    app.attach(loop)
    tasks = [asyncio.ensure_future(app.tick())]
    if checks and app.checker is not None:
        tasks.append(asyncio.ensure_future(app.checker.run()))
    await app.index.start()
    server = await loop.create_server(lambda: ClientConnection(app), "127.0.0.1", 0)
    router = Router(app, server.sockets[0].getsockname()[1])
    try:
        yield router
    finally:
        for client in router.clients:
            client.writer.transport.abort()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await app.index.close()
        await app.close()
        await server.wait_closed()


@asynccontextmanager
async def engines_of(*names: str) -> AsyncIterator[list[Engine]]:
    """Engines until the end of the block."""
    engines = [Engine(name) for name in names]
    for engine in engines:
        await engine.start()
    try:
        yield engines
    finally:
        for engine in engines:
            await engine.stop()


def index_of(router: Router) -> RedisIndex:
    """The router's index."""
    assert isinstance(router.app.index, RedisIndex)
    return router.app.index
