"""Fuzzers for minutes: libFuzzer's where clang is, and the tests' own seeded ones at length."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3_000
SECONDS_MAX = 2_400
FUZZ_SECONDS = 120


@pytest.mark.timeout(SECONDS_MAX + 900)
def test_devices_that_say_anything_are_opened_served_and_written() -> None:
    """Thousands of devices with forged headers and right checksums: nothing unvouched is handed out, new shards are kept."""
    build = [sys.executable, ".ci/native.py", "test", "--sanitizer", "address", "--only", "^disk_fuzz_test$"]
    subprocess.run(build, cwd=ROOT, check=True, timeout=900)
    command = [ROOT / "build" / "test-address" / "disk_fuzz_test"]
    environment = {**os.environ, "KVCOMMONS_ROUNDS": str(ROUNDS)}
    subprocess.run(command, cwd=ROOT / "csrc", env=environment, check=True, timeout=SECONDS_MAX)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="apt-get install clang brings libFuzzer")
@pytest.mark.timeout(3_600)
def test_no_bytes_crash_a_decoder() -> None:
    """libFuzzer finds no bytes that a decoder of frames or of disk headers reads out of bounds."""
    fuzz = [sys.executable, ".ci/native.py", "fuzz", "--seconds", str(FUZZ_SECONDS)]
    subprocess.run(fuzz, cwd=ROOT, check=True, timeout=3_000)
