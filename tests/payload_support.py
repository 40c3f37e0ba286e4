"""The payload for tests: built where it is not, and the Pythons of this machine that it may meet."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD_SECONDS_MAX = 1_500
PLAIN = Path(sys.base_prefix) / "bin" / "python3"
"""Without the packages of the virtual environment, as in an image: an editable install would come before the payload."""
PYENV = Path.home() / ".pyenv" / "versions"


@functools.cache
def payload() -> Path:
    """build/payload, up to date; minutes where the native module has changed."""
    done = subprocess.run(
        [sys.executable, ".ci/payload.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / "payload"


@functools.cache
def manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((payload() / "manifest.json").read_text())
    return found


def other_pythons() -> dict[tuple[int, int], Path]:
    """Interpreters of this machine by minor version."""
    found: dict[tuple[int, int], Path] = {}
    for folder in sorted(PYENV.glob("3.*")) if PYENV.is_dir() else []:
        major, minor = folder.name.split(".")[:2]
        if minor.isdigit() and (folder / "bin" / "python").exists():
            found[int(major), int(minor)] = folder / "bin" / "python"
    return found


def check(python: Path | str, place: Path, **environment: str) -> dict[str, Any]:
    """What launch.py --check says under a Python."""
    done = subprocess.run(
        [str(python), str(place / "launch.py"), "--check", "--report", os.devnull],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
