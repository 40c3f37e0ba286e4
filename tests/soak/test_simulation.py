"""Many runs of the simulated nodes, under ThreadSanitizer; each prints its seed, which repeats it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 200
SECONDS_MAX = 3_000


@pytest.mark.timeout(SECONDS_MAX + 900)
def test_hundreds_of_runs_serve_nothing_wrong_and_leak_nothing() -> None:
    """Whatever breaks in whatever order, no node serves a wrong byte, loses what it must keep, or leaks."""
    build = [sys.executable, ".ci/native.py", "test", "--sanitizer", "thread", "--only", "^simulation_test$"]
    subprocess.run(build, cwd=ROOT, check=True, timeout=900)
    command = [ROOT / "build" / "test-thread" / "simulation_test"]
    environment = {**os.environ, "KVCOMMONS_ROUNDS": str(ROUNDS), "TSAN_OPTIONS": "halt_on_error=1"}
    subprocess.run(command, cwd=ROOT / "csrc", env=environment, check=True, timeout=SECONDS_MAX)
