"""The payload for another processor, by a cross-compiler. It is built and read here, not run."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import payload_support
import pytest

MACHINE = "aarch64" if platform.machine() == "x86_64" else "x86_64"
COMPILER = f"{MACHINE}-linux-gnu-g++"


@pytest.mark.timeout(2 * payload_support.BUILD_SECONDS_MAX)
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER}: apt-get install g++-{MACHINE}-linux-gnu")
def test_the_payload_of_another_processor_is_whole(tmp_path: Path) -> None:
    """Both native modules are for that processor, ask for no newer glibc, and this machine refuses them by name."""
    place = tmp_path / "payload"
    command = [sys.executable, ".ci/payload.py", "--all", "--machine", MACHINE, "--dest", str(place)]
    done = subprocess.run(
        command,
        cwd=payload_support.ROOT,
        capture_output=True,
        text=True,
        timeout=2 * payload_support.BUILD_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((place / "manifest.json").read_text())
    assert (manifest["machine"], manifest["pythons"]) == (MACHINE, ["3.11", ">=3.12"])
    names = sorted(path.name for path in place.rglob("_native*.so"))
    assert names == ["_native.abi3.so", f"_native.cpython-311-{MACHINE}-linux-gnu.so"]
    found = payload_support.check(payload_support.PLAIN, place)
    assert (found["loaded"], found["reason"]) == (False, "WrongMachine")
