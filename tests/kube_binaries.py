"""Where the programs of a test cluster come from: KUBEBUILDER_ASSETS, else built and cached by .ci/kube.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_SECONDS_MAX = 3_600


class BuildFailed(Exception):
    """A program could not be built."""


class Binaries:
    """Finds programs by name; what the user's folder of assets has goes first, as users of envtest expect."""

    def __init__(self) -> None:
        assets = os.environ.get("KUBEBUILDER_ASSETS")
        self.assets = Path(assets) if assets else None
        self._built: dict[str, Path] = {}

    def bring(self, *names: str) -> None:
        """Builds what is missing."""
        missing = [name for name in names if name not in self._built and not self._asset(name)]
        if not missing:
            return
        command = [sys.executable, str(ROOT / ".ci" / "kube.py"), *missing]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=BUILD_SECONDS_MAX)
        if done.returncode != 0:
            raise BuildFailed(f"`python .ci/kube.py {' '.join(missing)}` failed; what it said is above")
        self._built.update({path.name: path for path in map(Path, done.stdout.splitlines())})

    def _asset(self, name: str) -> Path | None:
        path = self.assets / name if self.assets else None
        return path if path and os.access(path, os.X_OK) else None

    def __getitem__(self, name: str) -> str:
        self.bring(name)
        return str(self._asset(name) or self._built[name])
