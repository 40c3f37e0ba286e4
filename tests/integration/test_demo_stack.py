"""A local stack's life: started, found ready, ended in every way, with nothing left. Redis, node and router are real."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kvcommons_cli import talk
from kvcommons_cli.checks import check_memory, locked, private_folder
from kvcommons_cli.engines import EngineSpec
from kvcommons_cli.guard import descendants
from kvcommons_cli.processes import StackError
from kvcommons_cli.progress import Progress
from kvcommons_cli.stack import Stack, StackOptions

SECONDS_MAX = 40.0
INTERRUPT_SECONDS_MAX = 15.0
FAKE_ENGINE = Path(__file__).resolve().parent.parent / "fake_engine.py"
# A process that starts a stack, says so, and waits to be ended.
HOST = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from integration.test_demo_stack import options_in
from kvcommons_cli.progress import Progress
from kvcommons_cli.stack import Stack
with Stack(options_in(Path({home!r})), Progress()) as stack:
    stack.start()
    print("ready", flush=True)
    time.sleep(600)
"""


# `kvcommons up` with fake engines: says where it is, and stays.
STAYING = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from integration.test_demo_stack import options_in
from kvcommons_cli.progress import Progress
from kvcommons_cli.up import stay
stay(options_in(Path({home!r})), Progress())
"""


def fake_engine(spec: EngineSpec, _gpu: bool) -> list[str]:
    return [sys.executable, str(FAKE_ENGINE), str(spec.port)]


def failing_engine(spec: EngineSpec, _gpu: bool) -> list[str]:
    return [*fake_engine(spec, _gpu), "fail"]


def options_in(home: Path, engine: Callable[[EngineSpec, bool], list[str]] = fake_engine) -> StackOptions:
    return StackOptions(home=home, arena_bytes=16 << 20, model=home, engine_command=engine, engine_bytes=100 << 20)


def below(root: int) -> list[int]:
    """Handles (pidfds) of every process below one, the fake engines' workers in other sessions among them."""
    handles = []
    for pid in descendants(root):
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    return handles


def all_end(handles: list[int]) -> bool:
    """Wait until each of these processes is gone, and close the handles."""
    deadline = time.monotonic() + SECONDS_MAX
    try:
        return all(select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0] for handle in handles)
    finally:
        for handle in handles:
            os.close(handle)


def start_host(home: Path) -> subprocess.Popen[str]:
    program = HOST.format(tests=str(FAKE_ENGINE.parent), home=str(home))
    host = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert host.stdout is not None
    lines = []
    for line in host.stdout:
        lines.append(line)
        if line == "ready\n":
            return host
    raise AssertionError("the stack did not start: " + "".join(lines))


def test_a_stack_is_ready_when_all_its_parts_are(tmp_path: Path) -> None:
    """After the start the node is in the index and the router sees its replicas; after the end nothing runs or lies about."""
    with Stack(options_in(tmp_path), Progress()) as stack:
        stack.start()
        sockets = stack.socket_folder
        assert talk.call_json("GET", stack.node_url + "/readyz")["ready"] is True
        assert talk.answers(stack.router_url + "/health")
        stack.check_alive()
        running = below(os.getpid())
        assert len(list((sockets / "tmp").glob("vllm_dist_*"))) == len(stack.engines)
        # Redis; guard and process of holder, node, router and two engines; the engines' workers.
        assert len(running) >= 13
    assert all_end(running)
    assert not sockets.exists()  # and what engines left in their folder for temporary files with it
    assert not (tmp_path / "lock").exists()


def test_the_node_may_be_killed_and_started_again(tmp_path: Path) -> None:
    """A killed node comes back under the same addresses with the same arena, beside running engines."""
    with Stack(options_in(tmp_path), Progress()) as stack:
        stack.start()
        stack.kill_node()
        assert not talk.answers(stack.node_url + "/healthz")
        stack.start_node()
        assert talk.call_json("GET", stack.node_url + "/v1/stats")["adopted"] is True
        stack.check_alive()


def test_a_part_that_fails_is_shown_with_its_log(tmp_path: Path) -> None:
    """An engine that does not start ends the start at once, with its name and its last words."""
    with (
        pytest.raises(StackError, match=r"(?s)replica-.: ended before it was ready.*no such device"),
        Stack(options_in(tmp_path, failing_engine), Progress()) as stack,
    ):
        stack.start()
    assert descendants(os.getpid()) == []


def test_interrupting_ends_everything_soon(tmp_path: Path) -> None:
    """Ctrl-C ends the stack in order, within seconds."""
    host = start_host(tmp_path)
    running = below(host.pid)
    started = time.monotonic()
    host.send_signal(signal.SIGINT)
    host.communicate(timeout=SECONDS_MAX)
    assert time.monotonic() - started < INTERRUPT_SECONDS_MAX
    assert len(running) >= 13
    assert all_end(running)


def test_kill_9_of_the_demo_itself_leaves_nothing(tmp_path: Path) -> None:
    """When the starter is killed the kernel tells the guards, and they end what is theirs."""
    host = start_host(tmp_path)
    running = below(host.pid)
    host.kill()
    host.communicate(timeout=SECONDS_MAX)
    assert len(running) >= 13
    assert all_end(running)


def test_up_says_what_to_curl_and_ends_when_a_part_does(tmp_path: Path) -> None:
    """The printed address answers; an engine that dies later ends the rest, and its log is shown."""
    program = STAYING.format(tests=str(FAKE_ENGINE.parent), home=str(tmp_path))
    host = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert host.stdout is not None
    curl = next(line for line in host.stdout if "curl" in line)
    assert talk.answers(curl.split()[1].removesuffix("/v1/chat/completions") + "/health")
    running = below(host.pid)
    worker = int((tmp_path / "logs" / "replica-a.log").read_text().split()[1])
    engine = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(engine, signal.SIGKILL)
    said, _ = host.communicate(timeout=SECONDS_MAX)
    assert "replica-a: ended by itself" in said
    assert all_end(running)


def test_one_home_has_one_stack(tmp_path: Path) -> None:
    """A second stack in the same folder is refused, and does not touch the first one's files."""
    with Stack(options_in(tmp_path), Progress()):
        (tmp_path / "logs").mkdir()
        with pytest.raises(StackError, match="another stack is running"), Stack(options_in(tmp_path), Progress()):
            raise AssertionError("the second one must not get so far")
        assert (tmp_path / "logs").exists()


def test_a_stack_that_is_refused_makes_no_folder(tmp_path: Path) -> None:
    """Too little memory, and a port in use, are told before the first file is made."""
    options = options_in(tmp_path / "home")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for refused, told in (
            (replace(options, engine_bytes=1 << 50), "2 engines and the cache need"),
            (replace(options, router_port=port), f"--port: {port} cannot be used"),
        ):
            with pytest.raises(StackError, match=told), Stack(refused, Progress()):
                raise AssertionError("nothing may be started")
    assert not (tmp_path / "home").exists()


def test_a_lock_that_was_removed_meanwhile_is_not_taken_for_the_present_one(tmp_path: Path) -> None:
    """Whoever opened a lock file that its owner then removed locks the one that is there now."""
    first = locked(tmp_path / "lock")
    assert first is not None
    assert locked(tmp_path / "lock") is None
    (tmp_path / "lock").unlink()
    second = locked(tmp_path / "lock")
    assert second is not None
    assert locked(tmp_path / "lock") is None
    first.close()
    second.close()


def test_too_little_memory_is_told_before_anything_is_started() -> None:
    """What the engines need and what there is stand in the message."""
    with pytest.raises(StackError, match="3 engines and the cache need"):
        check_memory(3, 1 << 50, 1 << 30)


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    """A socket folder that others may write to is refused: they could answer in the node's place."""
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    with pytest.raises(StackError, match="private folder"):
        private_folder(open_folder)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(StackError, match="private folder"):
        private_folder(link)
