"""A local stack: Redis, a cache node with its holder, vLLM engines and the router, all on loopback.

Everything is started by this process behind guards, so that nothing outlives it, in whatever way it ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from kvcommons_core import redis_server
from kvcommons_core.redis_server import free_port

from kvcommons_cli import engines, processes, talk
from kvcommons_cli.checks import MEMORY_SPARE_BYTES, available_bytes, check_memory, check_port, locked, private_folder
from kvcommons_cli.engines import EngineSpec
from kvcommons_cli.model import make_smollm2
from kvcommons_cli.processes import Guarded, StackError
from kvcommons_cli.progress import Progress, wait_ready

NODE_ID = "local"
INDEX_PREFIX = "kvc:local:"
ENGINE_SECONDS_MAX = 300.0
PART_SECONDS_MAX = 60.0
SOCKET_FOLDER_BYTES_MAX = 60
"""A socket's path may have 107 bytes; vLLM makes sockets with names of 36 in the folder for temporary files below."""
REPLICAS = ("replica-a", "replica-b")
REFERENCE = "reference"


@dataclass(frozen=True)
class StackOptions:
    """What to start."""

    home: Path
    """Logs, state and the report."""
    router_port: int = 0
    arena_bytes: int = 2 << 30
    developer_calls: bool = False
    model: Path | None = None
    """Folder of the model; None: SmolLM2, made from its package."""
    engine_command: Callable[[EngineSpec, bool], list[str]] = engines.command
    engine_bytes: int = engines.ENGINE_BYTES


class Stack:
    """The stack's processes. Use as a context manager: leaving it ends them all."""

    def __init__(self, options: StackOptions, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._gpu = engines.has_gpu()
        self._lock: IO[str] | None = None
        self._redis: redis_server.RedisServer | None = None
        self._running: dict[str, Guarded] = {}
        self.engines: dict[str, EngineSpec] = {}
        self._model: Path | None = None
        self._control_port = 0
        self._router_port = 0

    def __enter__(self) -> Self:
        self._refuse_early()
        self._take_home()
        return self

    def __exit__(self, *_reason: object) -> None:
        self.stop()

    @property
    def logs(self) -> Path:
        return self._options.home / "logs"

    @property
    def router_url(self) -> str:
        return f"http://127.0.0.1:{self._router_port}"

    @property
    def node_url(self) -> str:
        return f"http://127.0.0.1:{self._control_port}"

    @property
    def replica_urls(self) -> list[str]:
        """Of the engines themselves, once they were started."""
        return [spec.url for spec in self.engines.values()]

    @property
    def redis_url(self) -> str:
        return self._redis.url if self._redis is not None else ""

    def start(self) -> None:
        """Start everything and wait until it is ready. :raises StackError: with the end of the failing part's log."""
        self.prepare()
        self.start_replicas()
        self.wait_replicas()

    def prepare(self) -> None:
        """All but the engines and the router, ready to be used."""
        self._model = self._options.model or self._make_model()
        self._start_redis()
        self._start_holder()
        self._control_port = free_port()
        self.start_node()

    def has_room_for(self, engine_count: int) -> bool:
        """Whether so many engines may run at one time, now that the node has its memory."""
        return available_bytes() >= engine_count * self._options.engine_bytes + MEMORY_SPARE_BYTES

    def start_reference(self) -> EngineSpec:
        """Begin to start one more engine, without us, to compare with."""
        spec = EngineSpec(REFERENCE, len(REPLICAS), free_port(), self._prepared_model(), None)
        self._start_engines([spec])
        return spec

    def wait_reference(self, spec: EngineSpec) -> None:
        wait_ready(self._progress, self._waiting([spec]), ENGINE_SECONDS_MAX)

    def start_replicas(self) -> None:
        """Begin to start the replicas and the router."""
        model, calls = self._prepared_model(), self._options.developer_calls
        specs = [
            EngineSpec(name, index, free_port(), model, self._node_socket(), calls)
            for index, name in enumerate(REPLICAS)
        ]
        self.engines = {spec.name: spec for spec in specs}
        self._start_engines(specs)
        self._start_router()

    def wait_replicas(self) -> None:
        waiting = self._waiting(list(self.engines.values()))
        waiting["router"] = (self._running["router"], _healthy(self.router_url + "/health"))
        wait_ready(self._progress, waiting, ENGINE_SECONDS_MAX)

    def stop(self) -> None:
        """End everything, and come back when it is gone."""
        processes.stop_all(list(self._running.values()))
        self._running.clear()
        if self._redis is not None:
            self._redis.stop()
            self._redis = None
        if self._lock is not None:
            shutil.rmtree(self.socket_folder, ignore_errors=True)
            (self._options.home / "lock").unlink(missing_ok=True)  # while it is held: see locked()
            self._lock.close()
            self._lock = None

    def start_node(self) -> None:
        """Start the cache node and wait until it serves and has joined the index."""
        words = ["--node-id", NODE_ID, "--arena-bytes", str(self._options.arena_bytes)]
        words += ["--socket-path", str(self._node_socket()), "--holder-socket", str(self._holder_socket())]
        words += ["--state-dir", str(self._options.home / "node"), "--control-port", str(self._control_port)]
        words += ["--index.url", self.redis_url, "--index.prefix", INDEX_PREFIX]
        node = self._spawn("node", _module("kvcommons_node", *words))
        wait_ready(self._progress, {"cache node": (node, self._node_is_ready)}, PART_SECONDS_MAX)

    def kill_node(self) -> None:
        """kill -9, as a crash would."""
        self._running.pop("node").kill()

    def stop_reference(self) -> None:
        """The engine without us has said what it had to say."""
        if REFERENCE in self._running:
            processes.stop_all([self._running.pop(REFERENCE)])

    def check_alive(self) -> None:
        """:raises StackError: if a part has ended by itself."""
        for process in self._running.values():
            if not process.alive():
                raise process.failure("ended by itself")

    def _refuse_early(self) -> None:
        """Before the first file is made. :raises StackError: for what this machine lacks, or a port in use."""
        if self._options.model is None:
            engines.require_engine()
        redis_server.require_server()
        check_memory(len(REPLICAS), self._options.engine_bytes, self._options.arena_bytes)
        if self._options.router_port:
            check_port(self._options.router_port)

    def _make_model(self) -> Path:
        self._progress.say("making the model (once; later it is there)")
        return make_smollm2()

    def _take_home(self) -> None:
        home = self._options.home
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._lock = locked(home / "lock")
        except OSError as error:
            raise StackError(f"{home} cannot be written: {error.strerror}; give another folder with --home") from error
        if self._lock is None:
            raise StackError(f"another stack is running in {home}; end that one, or give --home")
        for left in ("logs", "node", "redis", "router", "run"):
            shutil.rmtree(home / left, ignore_errors=True)
        private_folder(self.socket_folder)
        self._temporary_folder.mkdir(mode=0o700, exist_ok=True)

    @property
    def _temporary_folder(self) -> Path:
        """Engines' own: vLLM leaves files behind where it makes temporary ones."""
        return self.socket_folder / "tmp"

    @property
    def socket_folder(self) -> Path:
        """Where the Unix sockets are."""
        below = self._options.home.resolve() / "run"
        if len(os.fsencode(below)) <= SOCKET_FOLDER_BYTES_MAX:
            return below
        # A Unix socket's path is short: elsewhere then, at one place for one home, so that none pile up after crashes.
        name = hashlib.sha256(os.fsencode(below)).hexdigest()[:8]
        return Path(f"/tmp/kvcommons-{os.geteuid()}-{name}")

    def _node_socket(self) -> Path:
        return self.socket_folder / "node.sock"

    def _holder_socket(self) -> Path:
        return self.socket_folder / "holder.sock"

    def _spawn(self, name: str, command: Sequence[str], variables: dict[str, str] | None = None) -> Guarded:
        process = processes.spawn(name, command, self.logs / f"{name}.log", variables)
        self._running[name] = process
        return process

    def _start_redis(self) -> None:
        binary = redis_server.require_server()
        self._redis = redis_server.start(binary, folder=self._options.home / "redis")
        self._progress.say(f"{binary.flavour} {binary.version} ({binary.source}) is ready")

    def _start_holder(self) -> None:
        words = ["--socket", str(self._holder_socket())]
        holder = self._spawn("holder", _module("kvcommons_node.holder", *words))
        wait_ready(self._progress, {"holder": (holder, self._holder_socket().is_socket)}, PART_SECONDS_MAX)

    def _prepared_model(self) -> Path:
        if self._model is None:
            raise StackError("engines are started after prepare()")
        return self._model

    def _start_engines(self, specs: Sequence[EngineSpec]) -> None:
        for spec in specs:
            variables = {**engines.environment(spec, self._gpu), "TMPDIR": str(self._temporary_folder)}
            self._spawn(spec.name, self._options.engine_command(spec, self._gpu), variables)
        names = ", ".join(spec.name for spec in specs)
        self._progress.say(f"starting vLLM on the {'GPU' if self._gpu else 'CPU'}: {names}; about a minute")

    def _waiting(self, specs: Sequence[EngineSpec]) -> dict[str, tuple[Guarded, Callable[[], bool]]]:
        return {spec.name: (self._running[spec.name], _healthy(spec.url + "/health")) for spec in specs}

    def _start_router(self) -> None:
        self._router_port = self._options.router_port or free_port()
        words = ["--listen", f"127.0.0.1:{self._router_port}", "--redis", self.redis_url, "--prefix", INDEX_PREFIX]
        for spec in self.engines.values():
            words += ["--instance", f"name={spec.name},url={spec.url},model={engines.MODEL_NAME},node={NODE_ID}"]
        self._spawn("router", _module("kvcommons_router", *words))

    def _node_is_ready(self) -> bool:
        try:
            answer = talk.call_json("GET", self.node_url + "/readyz", seconds_max=1.0)
        except talk.TalkError:
            return False
        index = answer.get("index")
        return isinstance(index, dict) and index.get("state") == "connected"


def _module(name: str, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", name, *words]


def _healthy(url: str) -> Callable[[], bool]:
    return lambda: talk.answers(url)
