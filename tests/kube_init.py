"""The first process of a test cluster's node, in process, mount and network namespaces of its own; standard library alone.

    python kube_init.py NODE.json      # {"hostname", "binds", "tmpfs", "network", "folder", "daemons": {name: command}}

Mounts what the node has to itself, waits for its network card, then keeps the node's programs running, as a machine's init
does. When it is killed, all of the node goes: processes, mounts and addresses.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

CARD_SECONDS_MAX = 30.0
POLL_SECONDS = 0.1
AGAIN_SECONDS = 1.0


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def mount(node: dict[str, Any]) -> None:
    """Folders that a kubelet takes for the machine's own; seen by this node alone."""
    run("mount", "--make-rslave", "/")
    run("mount", "--make-rshared", "/")
    for place in node["tmpfs"]:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
    for source, target in node["binds"].items():
        run("mount", "--bind", source, target)
    Path("/run/netns").mkdir(exist_ok=True)


def connect(network: dict[str, Any]) -> None:
    """Addresses and routes, once whoever made this node has put its card here."""
    pause = threading.Event()
    deadline = time.monotonic() + CARD_SECONDS_MAX
    while subprocess.run(["ip", "link", "show", "eth0"], capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            sys.exit(f"no eth0 within {CARD_SECONDS_MAX:.0f} s")
        pause.wait(POLL_SECONDS)
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", network["address"], "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    for destination, gateway in network["routes"].items():
        run("ip", "route", "add", destination, "via", gateway)
    for setting, value in network["settings"].items():
        Path("/proc/sys", *setting.split(".")).write_text(value)


class Supervisor:
    """Starts the node's programs, and again where one ends."""

    def __init__(self, folder: Path, daemons: dict[str, list[str]]) -> None:
        self.folder = folder
        self.daemons = daemons
        self._pids: dict[int, str] = {}
        self._again_at: dict[str, float] = dict.fromkeys(daemons, 0.0)

    def _start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.daemons[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._pids[process.pid] = name
        process.returncode = 0  # reaped below, with what others have left to us

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self._pids.pop(pid, None)
            if name is not None:
                self._again_at[name] = time.monotonic() + AGAIN_SECONDS

    def run(self) -> None:
        pause = threading.Event()
        while True:
            for name, moment in list(self._again_at.items()):
                if moment <= time.monotonic():
                    del self._again_at[name]
                    self._start(name)
            pause.wait(AGAIN_SECONDS / 4)
            self._reap()


def main() -> None:
    node = json.loads(Path(sys.argv[1]).read_text())
    socket.sethostname(node["hostname"])
    mount(node)
    connect(node["network"])
    Supervisor(Path(node["folder"]), node["daemons"]).run()


if __name__ == "__main__":
    main()
