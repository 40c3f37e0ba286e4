"""Images that no build of ours made, as folders: another Debian's Python and glibc, entered read-only and without privileges."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = "python3,libstdc++6"  # as python images have them
BOOTSTRAP_SECONDS_MAX = 900
USER = GROUP = 65532
# In a mount namespace of its own, which ends with the command: the root read-only, the volumes on it, another user.
ENTER = f"""
set -e
root=$1
shift
mount --bind "$root" "$root"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
while [ "$1" != -- ]; do
  mount --bind "$1" "$root$2"
  shift 2
done
shift
mount -o remount,bind,ro "$root"
exec chroot --userspec={USER}:{GROUP} "$root" "$@"
"""


def obstacle() -> str:
    """Why there can be no stand-in here, with the remedy; empty where there can."""
    if os.geteuid() != 0:
        return "an image's files are laid out and entered by root"
    missing = [name for name in ("debootstrap", "unshare", "chroot") if shutil.which(name) is None]
    return f"no {', '.join(missing)}: apt-get install debootstrap util-linux" if missing else ""


@dataclass(frozen=True)
class StandIn:
    """A Debian release's minimal system with Python."""

    root: Path

    def run(
        self, *command: str, volumes: Mapping[Path, str], environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command in it as another user than root, with folders of this machine mounted on folders of its own."""
        mounted = [part for source, target in volumes.items() for part in (str(source), target)]
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", ENTER, "enter", str(self.root), *mounted, "--", *command],
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **(environment or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def of(release: str, folders: tuple[str, ...]) -> StandIn:
    """Made once by debootstrap under $KVCOMMONS_CACHE/roots; ``folders`` are there to mount on."""
    cache = Path(os.environ.get("KVCOMMONS_CACHE", ROOT / ".cache")) / "roots"
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / release
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            fresh = cache / f"{release}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BOOTSTRAP_SECONDS_MAX, check=False)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            shutil.rmtree(fresh / "var" / "cache" / "apt" / "archives")
            fresh.rename(root)
        for folder in folders:
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return StandIn(root)
