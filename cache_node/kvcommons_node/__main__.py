"""Run a cache node: keeps KV chunks in shared memory for the engines of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from kvcommons_core.errors import ConfigurationError, NativeMissingError, StartRefusedError
from kvcommons_core.settings import NodeSettings, describe, flags_of, load_settings

from kvcommons_node import logs
from kvcommons_node.control import IndexLink, NoIndex
from kvcommons_node.daemon import BeginAnew, Daemon, stop_on_signals
from kvcommons_node.plan import StartPlan, make_plan
from kvcommons_node.pool_view import NoPool, PoolView
from kvcommons_node.seam import Core

REFUSED_STATUS = 2
SECTION = "node"
USAGE = """usage: kvcommons node [--config FILE] [--SETTING VALUE]...

Settings come from the file (TOML or JSON), the environment (KVCOMMONS_NODE__ARENA_BYTES=2GiB) and the flags below;
the later wins. For example: kvcommons node --arena-bytes 2GiB --socket-path /tmp/kvc/node.sock --state-dir /tmp/kvc

  --config                             A file with the tables [node] and [index]
"""

OLD_NATIVE = (
    "the native module is of another version than this package (it lacks {lacks}): build it anew with `make build`, "
    "or install the wheel again"
)

logger = logging.getLogger("kvcommons_node")


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words:
        sys.stdout.write(USAGE + describe(NodeSettings, SECTION) + "\n")
        return 0
    try:
        settings = read_settings(words)
        logs.configure(settings.node.log_level, as_json=settings.node.log_json)
        native()
        if asyncio.run(_run(make_plan(settings, importlib.metadata.version("kvcommons")))):
            # The same command in the same process: nobody who waits for it sees it end.
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except (ConfigurationError, StartRefusedError, NativeMissingError) as error:
        sys.stderr.write(f"kvcommons node: {error}\n")
        return REFUSED_STATUS
    return 0


def read_settings(words: Sequence[str]) -> NodeSettings:
    """:raises ConfigurationError: for what is unknown or wrong, naming the remedy."""
    rest = list(words)
    file: Path | None = None
    for index, word in enumerate(rest):
        if word == "--config" or word.startswith("--config="):
            name, _, value = word.partition("=")
            if not value and index + 1 >= len(rest):
                raise ConfigurationError(name, "", "give it a file")
            file = Path(value or rest[index + 1])
            del rest[index : index + (1 if value else 2)]
            break
    flags, strangers = flags_of(NodeSettings, rest, SECTION)
    if strangers:
        raise ConfigurationError("arguments", " ".join(strangers), "settings are given as --NAME VALUE")
    return load_settings(NodeSettings, file=file, flags=flags)


async def _run(plan: StartPlan) -> bool:
    """Whether to begin anew."""
    daemon = Daemon(plan, make_core, make_index, make_pool)
    stop_on_signals(daemon)
    with contextlib.suppress(BeginAnew):
        await daemon.run()
    return daemon.begins_anew


def native() -> ModuleType:
    """:raises NativeMissingError: where the module was not built; asked first, before anything is made."""
    try:
        from kvcommons_core import _native
    except ImportError as error:
        raise NativeMissingError("the cache node") from error
    return _native


def make_core(plan: StartPlan) -> Core:
    """The native core, built but not started. :raises StartRefusedError: if it does not take the arguments."""
    check_native(native().NodeCore)
    try:
        core: Core = native().NodeCore(
            socket_path=str(plan.socket_path),
            arena_bytes=plan.arena_bytes,
            node_id=plan.node_id,
            namespace_secret=plan.namespace_secret,
            holder_socket=str(plan.holder_socket or ""),
            multi_tenant=plan.multi_tenant,
            **plan.core,  # names and types are those of plan.make_plan
        )
    except ValueError as error:
        raise StartRefusedError(str(error)) from error
    except TypeError as error:  # an argument that it does not know
        raise StartRefusedError(OLD_NATIVE.format(lacks="settings of this version")) from error
    return core


def check_native(kind: type) -> None:
    """:raises StartRefusedError: if the native module is of another version than this package."""
    lacks = [name for name in vars(Core) if not name.startswith("_") and not hasattr(kind, name)]
    if lacks:
        raise StartRefusedError(OLD_NATIVE.format(lacks=", ".join(lacks)))


def make_index(plan: StartPlan, core: Core) -> IndexLink:
    """The link to Redis, or the one that leads nowhere. Imported late: a private node needs no Redis client."""
    if not plan.index.url:
        return NoIndex()
    from kvcommons_node.index_link import RedisIndex

    return RedisIndex(plan, core)


def make_pool(plan: StartPlan) -> PoolView:
    """The others of the pool, as Redis knows them; imported late, as the index is."""
    if not plan.index.url:
        return NoPool()
    from kvcommons_node.pool_redis import RedisPool

    return RedisPool(plan.index)


if __name__ == "__main__":
    sys.exit(main())
