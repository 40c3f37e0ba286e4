"""Steps of the set-up: one line each, a line now and then while one takes long, and all that was printed in a log."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "setup.log"
REMINDER_SECONDS = 15.0
TAIL_LINES = 20
TAIL_BYTES_MAX = 64 << 10
SHOWN_CHARACTERS_MAX = 90
COMPILING = "compiling bytecode, so that engines start in seconds"


def begin_log() -> None:
    """A new log for this set-up."""
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text(time.strftime("%Y-%m-%d %H:%M:%S\n"))


def tail(log: Path, lines_max: int) -> List[str]:
    """The last lines that say something."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES_MAX))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()][-lines_max:]


def state(log: Path) -> str:
    """What a step is at, by what it printed last."""
    last = (tail(log, 1) or [""])[0]
    return COMPILING if last.startswith(("Installed", "+ ")) else last[:SHOWN_CHARACTERS_MAX]


def say(text: str) -> None:
    print("setup: " + text, flush=True)


def run_step(title: str, command: List[str], stdin: str = "", reminder_seconds: float = REMINDER_SECONDS) -> None:
    """Run one command. Ends this process with the log's end and path where it fails."""
    say(title)
    started = time.monotonic()
    with LOG.open("ab") as log, tempfile.TemporaryFile() as given:
        log.write(("\n$ " + " ".join(command) + "\n").encode())
        log.flush()
        given.write(stdin.encode())
        given.seek(0)
        process = subprocess.Popen(command, cwd=str(ROOT), stdin=given, stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                status = process.wait(timeout=reminder_seconds)
                break
            except subprocess.TimeoutExpired:
                say("  %.0f s: %s" % (time.monotonic() - started, state(LOG)))
    if status != 0:
        lines = "\n".join("    " + line for line in tail(LOG, TAIL_LINES))
        sys.exit("setup failed: %s\n%s\nThe whole log is %s" % (title, lines, LOG))
