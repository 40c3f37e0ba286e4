"""One way to talk to the index: pipelines of plain commands, to a standalone server, through Sentinel, or to a Cluster.

The client library's exceptions end here; whoever uses a connection sees IndexUnavailableError (go on without the index, try later) or a
CommandError in the place of one reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis.asyncio as redis_asyncio
from redis.asyncio import sentinel as redis_sentinel
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from kvcommons_core.errors import ConfigurationError, IndexUnavailableError
from kvcommons_core.index.scripts import ALL, Script
from kvcommons_core.index.tasks import reraise_swallowed_cancellation
from kvcommons_core.settings import IndexSettings
from kvcommons_core.settings_values import without_password

_Sentinel: Any = redis_sentinel.Sentinel  # its constructor has no annotations

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

# What the client library raises when a server is away; the KeyError is of its map of a Cluster that is not whole.
AWAY: Final = (RedisError, OSError, KeyError)
SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


@dataclass(frozen=True, slots=True)
class CommandError:
    """Redis refused one command of a pipeline."""

    message: str

    @property
    def unknown_script(self) -> bool:
        return self.message.startswith(("NOSCRIPT", "No matching script"))


def evalsha(script: Script, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Command:
    """A script's call as a command."""
    return ("EVALSHA", script.sha, len(keys), *keys, *arguments)


def _ports_are_numbers(url: str) -> bool:
    """Whether every host of the address has a port that can be one, or none."""
    scheme, _, rest = url.partition("://")
    if scheme == "unix":
        return True
    for host in rest.partition("/")[0].rpartition("@")[2].split(","):
        try:
            _ = urlsplit(f"//{host}").port
        except ValueError:
            return False
    return True


class IndexConnection:
    """A client of the index. Not for two tasks at once inside one pipeline; pipelines of several tasks may overlap."""

    def __init__(self, settings: IndexSettings) -> None:
        scheme = settings.url.partition("://")[0]
        if scheme not in SCHEMES:
            raise ConfigurationError(
                "index.url", without_password(settings.url), f"begin it with one of {', '.join(SCHEMES)}"
            )
        if not _ports_are_numbers(settings.url):
            raise ConfigurationError(
                "index.url", without_password(settings.url), "give each host as HOST:PORT with a port from 1 to 65535"
            )
        self.is_cluster = scheme.endswith("+cluster")
        self._settings = settings
        self._client: Any = None
        self._companions: list[Any] = []  # Sentinel's own clients
        self._scripts_loaded = False

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to a pipeline, in order; a refused command's is a CommandError. Unknown scripts are loaded and the pipeline is sent
        once more, so commands must bear repetition.

        :raises IndexUnavailableError: if Redis does not answer.
        """
        replies = await self._once(commands)
        if any(isinstance(reply, CommandError) and reply.unknown_script for reply in replies):
            await self._load_scripts()
            replies = await self._once(commands)
        return replies

    async def one(self, command: Command) -> Any:
        """The reply to one command.

        :raises IndexUnavailableError: if Redis does not answer, or refuses it.
        """
        reply = (await self.run([command]))[0]
        if isinstance(reply, CommandError):
            raise IndexUnavailableError(f"Redis refuses {command[0]!r}: {reply.message}")
        return reply

    async def script(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Any:
        return await self.one(evalsha(script, keys, arguments))

    async def run_ids(self) -> frozenset[str]:
        """The random ids of the servers' lives; another set means that what was read before may not be there. Empty where INFO is denied."""
        if self.is_cluster:
            return await self._cluster_run_ids()
        reply = (await self.run([("INFO", "server")]))[0]
        return frozenset() if isinstance(reply, CommandError) else frozenset({_run_id(reply)})

    async def pubsub(self) -> Any:
        """A subscriber of the client library; feedback.py is its one user."""
        client = self._open()
        if self.is_cluster:
            await client.initialize()  # a subscriber looks its node up without asking the cluster first
        return client.pubsub()

    async def close(self) -> None:
        clients, self._client, self._companions = [self._client, *self._companions], None, []
        for client in clients:
            if client is not None:
                with suppress(*AWAY):  # it was gone already
                    await client.aclose()

    async def _once(self, commands: Sequence[Command]) -> list[Any]:
        client = self._open()
        try:
            pipe = client.pipeline() if self.is_cluster else client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            replies = await pipe.execute(raise_on_error=False)
            reraise_swallowed_cancellation()
        except AWAY as error:
            reraise_swallowed_cancellation()
            raise IndexUnavailableError(f"Redis at {without_password(self._settings.url)}: {error}") from error
        return [_checked(reply) for reply in replies]

    async def _load_scripts(self) -> None:
        try:
            client = self._open()
            for script in ALL:
                await client.script_load(script.text)
        except AWAY as error:
            raise IndexUnavailableError(f"Redis does not take our scripts: {error}") from error

    async def _cluster_run_ids(self) -> frozenset[str]:
        try:
            replies = await self._open().execute_command("INFO", "server", target_nodes=RedisCluster.PRIMARIES)
        except AWAY as error:
            raise IndexUnavailableError(f"Redis Cluster: {error}") from error
        answers = replies.values() if isinstance(replies, dict) and "run_id" not in replies else [replies]
        return frozenset(_run_id(answer) for answer in answers)

    def _open(self) -> Any:
        if self._client is None:
            self._client, self._companions = _make_client(self._settings)
        return self._client


def _make_client(settings: IndexSettings) -> tuple[Any, list[Any]]:
    """The client library's client for a URL, and what is to be closed with it."""
    scheme, _, rest = settings.url.partition("://")
    common = _common_options(settings)
    tls = _tls_options(settings) if scheme.startswith("rediss") else {}
    if scheme in ("redis", "rediss", "unix"):
        return redis_asyncio.Redis.from_url(settings.url, **common, **tls), []
    if tls:
        tls["ssl"] = True
    authority, _, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    if credentials:
        user, _, password = credentials.partition(":")
        common |= {"username": unquote(user) or None, "password": unquote(password) or None}
    addresses = [_host_port(host) for host in hosts.split(",")]
    if scheme.endswith("+cluster"):
        del common["retry"]
        nodes = [ClusterNode(host, port) for host, port in addresses]
        return RedisCluster(startup_nodes=nodes, **common, **tls), []
    service, _, database = path.partition("/")
    if not service:
        raise ConfigurationError(
            "index.url", without_password(settings.url), "name the master that Sentinel watches: .../MASTER/0"
        )
    sentinel_options = {key: value for key, value in common.items() if key not in ("username", "password")} | tls
    sentinel: Any = _Sentinel(addresses, sentinel_kwargs=sentinel_options, db=int(database or 0), **common, **tls)
    return sentinel.master_for(service), list(sentinel.sentinels)


def _common_options(settings: IndexSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "decode_responses": False,
        "protocol": 2,
        "socket_connect_timeout": settings.connect_ms_max / 1_000,
        "socket_timeout": settings.call_ms_max / 1_000,
        "retry": Retry(NoBackoff(), 0),  # who calls knows better when to try again
    }
    if settings.username:
        options["username"] = settings.username
    if settings.password_file:
        try:
            options["password"] = Path(settings.password_file).read_text().strip()
        except OSError as error:
            raise ConfigurationError(
                "index.password_file", settings.password_file, f"make it readable ({error.strerror})"
            ) from error
    return options


def _tls_options(settings: IndexSettings) -> dict[str, Any]:
    options = {
        "ssl_ca_certs": settings.tls_ca_file,
        "ssl_certfile": settings.tls_cert_file,
        "ssl_keyfile": settings.tls_key_file,
    }
    return {name: value for name, value in options.items() if value}


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigurationError("index.url", text, "give each server as HOST:PORT")
    return host.strip("[]"), int(port)


def _run_id(reply: Any) -> str:
    """Parsed or not, as the client's version gives it."""
    if isinstance(reply, dict):
        return str(reply.get("run_id", ""))
    text = reply.decode() if isinstance(reply, bytes) else str(reply)
    return next((line[7:].strip() for line in text.splitlines() if line.startswith("run_id:")), "")


def _checked(reply: Any) -> Any:
    """A refusal of one command stays in its place; a lost connection in it is the whole pipeline's."""
    if isinstance(reply, ResponseError):
        return CommandError(str(reply) if not type(reply).__name__.startswith("NoScript") else f"NOSCRIPT {reply}")
    if isinstance(reply, RedisError | OSError):
        raise IndexUnavailableError(f"Redis: {reply}") from reply
    return reply
