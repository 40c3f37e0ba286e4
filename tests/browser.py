"""A real browser without a screen: Debian's package `chromium`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SECONDS_MAX = 90
SETTLES_MS = 6_000
"""Of the browser's own time, which runs ahead of the clock while a page only waits: so long its scripts may run."""


def _run(folder: Path, url: str, *flags: str) -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium: apt-get install -y --no-install-recommends chromium")
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions")
    own = (f"--user-data-dir={folder}", "--window-size=1280,1500", f"--virtual-time-budget={SETTLES_MS}")
    done = subprocess.run(
        [found, *quiet, *own, *flags, url],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, f"chromium {' '.join(flags)} {url}\n{done.stderr[-2000:]}"
    return done.stdout


def document(folder: Path, url: str) -> str:
    """What has become of a page after its scripts ran, as HTML. `folder` gets the browser's profile."""
    return _run(folder, url, "--dump-dom")


def screenshot(folder: Path, url: str, file: Path) -> None:
    """The same, as a PNG."""
    _run(folder, url, f"--screenshot={file}", "--hide-scrollbars")
    assert file.read_bytes().startswith(b"\x89PNG")
