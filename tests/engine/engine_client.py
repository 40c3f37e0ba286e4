"""The tests' side of engine_host.py: engines, cache nodes and their lives."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

START_SECONDS_MAX = 170
CALL_SECONDS_MAX = 110
HERE = Path(__file__).parent

FAST = {
    "kv_connector": "KVCommonsConnector",
    "kv_connector_module_path": "kvcommons_connector.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


def connector(**extra: Any) -> dict[str, Any]:
    """What a user writes into --kv-transfer-config; patient, for the tests count hits and the machine may be busy."""
    return FAST | {"kv_connector_extra_config": {"lookup_ms_max": 1_000, "call_ms_max": 2_000} | extra}


class EngineError(AssertionError):
    """A command failed in the engine; the text is its traceback, and the end of its log."""


class Engine:
    """A real engine in a process of its own."""

    def __init__(self, connection: Connection, pid: int, log: Path) -> None:
        self._connection, self.pid, self.log = connection, pid, log
        self._pidfd = os.pidfd_open(pid)
        self._wait(START_SECONDS_MAX)

    def start(self, command: str, **arguments: Any) -> None:
        """Begin a command; `result` waits for it."""
        self._connection.send((command, arguments))

    def result(self) -> Any:
        """Of the command begun."""
        return self._wait(CALL_SECONDS_MAX)

    def call(self, command: str, **arguments: Any) -> Any:
        """One command of engine_host.Host."""
        self.start(command, **arguments)
        return self.result()

    def _wait(self, seconds: float) -> Any:
        if not self._connection.poll(seconds):
            raise EngineError(f"no answer within {seconds} s\n{self.tail()}")
        try:
            status, value = self._connection.recv()
        except EOFError:
            raise EngineError(f"the engine is gone\n{self.tail()}") from None
        if status != "ok":
            raise EngineError(f"{value}\n{self.tail()}")
        return value

    def tail(self) -> str:
        """The end of what the engine has said."""
        return self.log.read_text(errors="replace")[-4000:]

    def generate(self, prompts: list[dict[str, Any]], **arguments: Any) -> list[dict[str, Any]]:
        """See engine_host.Host.generate."""
        answers: list[dict[str, Any]] = self.call("generate", prompts=prompts, **arguments)
        return answers

    def kill(self) -> None:
        """kill -9 of the engine and all of its processes, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._gone()

    def close(self) -> None:
        """Hang up; the engine ends by itself, at the latest by a kill."""
        with contextlib.suppress(OSError):
            self._connection.close()
        if self._pidfd < 0:
            return
        if not select.select([self._pidfd], [], [], 20)[0]:
            self.kill()
            return
        self._gone()

    def _gone(self) -> None:
        if self._pidfd >= 0:
            select.select([self._pidfd], [], [], 30)
            os.close(self._pidfd)
            self._pidfd = -1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Forge:
    """Makes engines: a process that has imported vLLM and forks."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._count = 0
        self._control, theirs = socket.socketpair()
        with (logs / "forge.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(HERE / "engine_host.py"), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        theirs.close()

    def begin(
        self, engine: dict[str, Any], connector: dict[str, Any] | None, **environment: str
    ) -> tuple[Connection, int, Path]:
        """Fork an engine without waiting until it is up; give the result to Engine()."""
        self._count += 1
        log = self._logs / f"engine-{self._count}.log"
        ours, theirs = socket.socketpair()
        message = json.dumps(
            {
                "engine": engine,
                "connector": connector,
                "environment": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | environment,
            }
        ).encode()
        with log.open("wb") as file:
            socket.send_fds(self._control, [message], [theirs.fileno(), file.fileno()])
        theirs.close()
        self._control.settimeout(START_SECONDS_MAX)
        pid = int.from_bytes(self._control.recv(8), "little")
        assert pid, (self._logs / "forge.log").read_text()
        return Connection(ours.detach()), pid, log

    def engine(self, engine: dict[str, Any], connector: dict[str, Any] | None, **environment: str) -> Engine:
        """An engine that is up."""
        return Engine(*self.begin(engine, connector, **environment))

    def close(self) -> None:
        """End the forge; the engines have ends of their own."""
        self._control.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


NODE_PROGRAM = """
import json, sys
from kvcommons_core import _native
options = json.loads(sys.argv[1])
options["namespace_secret"] = bytes.fromhex(options["namespace_secret"])
node = _native.NodeCore(**options)
node.start()
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.read()
node.stop()
"""


class Node:
    """A cache node's core in a process of its own."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.socket = str(folder / "node.sock")
        self._options = {
            "socket_path": self.socket,
            "arena_bytes": 256 << 20,
            "slab_bytes": 16 << 20,
            "node_id": "test",
            "populate": False,
            "namespace_secret": bytes(range(32)).hex(),
            "verify_one_in": 1,
        } | options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it (again) and wait until it serves."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", NODE_PROGRAM, json.dumps(self._options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the node did not start"

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._reap()

    def close(self) -> None:
        """Stop in order."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None

    def stats(self) -> dict[str, int]:
        """The node's counters, by a tool's session."""
        from kvcommons_core import _native

        tool = _native.Client(socket_path=self.socket, role="tool")
        try:
            status, text = tool.stat()
            assert status == "ok", (status, tool.last_error)
            counters: dict[str, int] = json.loads(text)
            return counters
        finally:
            tool.close()
