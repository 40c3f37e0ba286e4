"""The holder: a process that keeps the arena's file descriptor, so that a restarted daemon finds its content again.

It outlives the daemon's kill -9 because it lives in a session of its own, and it ends by itself when no daemon has come
for a while, so that memory is never held for nobody."""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from kvcommons_core.errors import StartRefusedError

from kvcommons_node.preflight import answers

IDLE_SECONDS_DEFAULT = 120
START_SECONDS_MAX = 10.0
POLL_SECONDS = 0.02
HOLDER_EXITED_BEFORE_IT_SERVED = "the holder process ended before it served"

logger = logging.getLogger(__name__)


def ensure(socket_path: Path, idle_seconds: int, log_path: Path, sleep: Callable[[float], None] = time.sleep) -> bool:
    """See that a holder answers at ``socket_path``; start one where none does. Returns whether it was started.

    :raises StartRefusedError: if it does not come up in START_SECONDS_MAX."""
    if answers(socket_path):
        return False
    command = [sys.executable, "-P", "-m", "kvcommons_node.holder", "--socket", str(socket_path)]
    with open(log_path, "ab") as log:
        process = subprocess.Popen(
            [*command, "--idle-seconds", str(idle_seconds)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
        )
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if answers(socket_path):
            logger.info("started the holder", extra={"pid": process.pid, "socket": str(socket_path)})
            return True
        if process.poll() is not None:
            raise StartRefusedError(f"{HOLDER_EXITED_BEFORE_IT_SERVED} (status {process.returncode}); see {log_path}")
        sleep(POLL_SECONDS)
    process.terminate()
    raise StartRefusedError(f"the holder did not serve {socket_path} within {START_SECONDS_MAX:.0f} s; see {log_path}")


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kvcommons-holder", description="Keep a cache node's arena across restarts.")
    parser.add_argument("--socket", required=True, help="Unix socket that the daemon finds this holder at")
    parser.add_argument(
        "--idle-seconds", type=int, default=IDLE_SECONDS_DEFAULT, help="end when no daemon was connected for so long"
    )
    options = parser.parse_args(arguments)
    # As the first process of a container it is ended by no signal that it has no handler for.
    # A closed terminal ends it as cleanly: its socket goes with it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    # Imported here: the parser's help works where the native module was not built.
    from kvcommons_core import _native

    try:
        _native.holder_serve(options.socket, options.idle_seconds)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"kvcommons-holder: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
