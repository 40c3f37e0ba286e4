"""A lean connection to one Redis for lookups: pipelined MGETs, answered by callback, without a task or a future each.

A lookup is on the way of nearly every long request, so what it costs in CPU counts. Everything else that the router says
to Redis, and lookups where there is Sentinel, Cluster or TLS, go through the core's connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast
from urllib.parse import unquote, urlsplit

import hiredis
from kvcommons_core.index.connection import Command
from kvcommons_core.settings import IndexSettings

from kvcommons_router import sockets

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.5
PENDING_MAX: Final = 4096
PLAIN_SCHEMES: Final = ("redis", "unix")

Values = list[bytes | None]
Answer = Callable[[Values | None], None]


class Waiting:
    """One lookup under way."""

    __slots__ = ("answer", "deadline")

    def __init__(self, answer: Answer, deadline: float) -> None:
        self.answer: Answer | None = answer
        self.deadline = deadline


class Link(asyncio.Protocol):
    """Answers come in the order of the questions; each question is answered once, with None when it is too late."""

    transport: asyncio.Transport

    def __init__(self, seconds_max: float) -> None:
        self.up = False
        self.refusals = 0  # commands that Redis answered with an error
        self.lost = asyncio.Event()
        self._reader = hiredis.Reader()
        self._waiting: deque[Waiting] = deque()
        self._unsent: list[bytes] = []
        self._seconds_max = seconds_max
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Questions may be asked."""
        self.transport = cast(asyncio.Transport, transport)
        sockets.prepare(transport)

    def greet(self, commands: Sequence[tuple[bytes | str, ...]]) -> asyncio.Future[None]:
        """Says who we are; the link is up once all was accepted."""
        done: asyncio.Future[None] = self._loop.create_future()
        left = len(commands) + 1

        def answered(values: Values | None) -> None:
            nonlocal left
            left -= 1
            if values is None and not done.done():
                done.set_exception(ConnectionError("Redis refuses the connection"))
            elif left == 0 and not done.done():
                self.up = True
                done.set_result(None)

        for command in (*commands, ("PING",)):
            self._ask(command, answered, 1.0)
        return done

    def mget(self, names: Sequence[bytes], answer: Answer) -> bool:
        """Asks for the values of some keys; False when the link is down or too much waits."""
        if not self.up or len(self._waiting) >= PENDING_MAX:
            return False
        self._ask(("MGET", *names), answer, self._seconds_max)
        return True

    def ask_all(self, commands: Sequence[Command], answer: Answer, seconds: float) -> None:
        """Asks several things at once; each is answered by itself."""
        for command in commands:
            self._ask(command, answer, seconds)

    def _ask(self, command: Command, answer: Answer, seconds: float) -> None:
        if not self._unsent:  # one write for all that is asked in one turn of the loop
            self._loop.call_soon(self._send)
        self._unsent.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub wants one item
        deadline = self._loop.time() + seconds
        self._waiting.append(Waiting(answer, deadline))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if not self.transport.is_closing():
            self.transport.write(b"".join(unsent))

    def _expire(self) -> None:
        """Gives up on those whose time is over; their answers are still read, and dropped."""
        self._timer = None
        now = self._loop.time()
        late: list[Answer] = []
        for waiting in self._waiting:
            if waiting.answer is None:
                continue
            if waiting.deadline > now:
                self._timer = self._loop.call_at(waiting.deadline, self._expire)
                break
            late.append(waiting.answer)
            waiting.answer = None
        for answer in late:
            answer(None)

    def data_received(self, data: bytes) -> None:
        """Hands answers out."""
        reader = self._reader
        reader.feed(data)
        try:
            while (value := reader.gets()) is not False:
                waiting = self._waiting.popleft()
                refused = isinstance(value, hiredis.ReplyError)
                self.refusals += refused
                if waiting.answer is not None:
                    answer, waiting.answer = waiting.answer, None
                    answer(None if refused else value if isinstance(value, list) else [])
        except (hiredis.ProtocolError, IndexError) as error:
            logger.error("Redis does not speak its protocol: %s", error)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits goes on without."""
        self.up = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        self.lost.set()
        for one in waiting:
            if one.answer is not None:
                one.answer(None)


class Links:
    """Keeps one link up. `run` until cancelled."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings
        self._url = urlsplit(settings.url)
        self.link: Link | None = None

    @staticmethod
    def can_serve(settings: IndexSettings) -> bool:
        """Whether this Redis is one server reached without TLS."""
        return urlsplit(settings.url).scheme in PLAIN_SCHEMES

    async def run(self) -> None:
        """Connects, and again whenever the link is lost."""
        while True:
            try:
                link = await self._connect()
            except OSError as error:
                logger.debug("no link to Redis: %s", error)
            else:
                self.link = link
                await link.lost.wait()
            await asyncio.sleep(RETRY_SECONDS)

    async def _connect(self) -> Link:
        loop = asyncio.get_running_loop()
        settings, url = self._settings, self._url
        async with asyncio.timeout(settings.connect_ms_max / 1000):
            if url.scheme == "unix":
                _, link = await loop.create_unix_connection(lambda: self._link(), url.path)
            else:
                host, port = url.hostname or "127.0.0.1", url.port or 6379
                _, link = await loop.create_connection(lambda: self._link(), host, port)
            try:
                await link.greet(self._greeting())
            except OSError:
                link.transport.abort()
                raise
        return link

    def _link(self) -> Link:
        return Link(self._settings.lookup_ms_max / 1000)

    def _greeting(self) -> list[tuple[bytes | str, ...]]:
        settings, url = self._settings, self._url
        user = settings.username or unquote(url.username or "")
        password = (
            Path(settings.password_file).read_text().strip() if settings.password_file else unquote(url.password or "")
        )
        commands: list[tuple[bytes | str, ...]] = []
        if password:
            commands.append(("AUTH", user, password) if user else ("AUTH", password))
        database = url.path.strip("/") if url.scheme == "redis" else ""
        if database not in ("", "0"):
            commands.append(("SELECT", database))
        return commands

    def close(self) -> None:
        """Ends the link."""
        if self.link is not None:
            self.link.transport.abort()
