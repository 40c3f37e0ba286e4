"""Leaves nothing behind of a test cluster, however it ended: processes by id, mounts, control groups, folders.

A node's mounts, addresses and processes live in namespaces of its own and go with their first process. A cluster's folder has a
record of what was made, one thing a line. As a program this waits until its standard input ends,
that is until whoever started it is gone, and then clears the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

RECORD = "record"
OWNER = "owner"
ROUNDS_MAX = 40
PAUSE_SECONDS = 0.1


def start_time(pid: int) -> str | None:
    """When a process began, in ticks since the machine's start; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _record(folder: Path, *words: str) -> None:
    with (folder / RECORD).open("a") as file:
        file.write("\t".join(words) + "\n")


def record_process(folder: Path, pid: int) -> None:
    """With its start time: an id that another process has got since is left alone."""
    _record(folder, "process", str(pid), start_time(pid) or "")


def record_cgroup(folder: Path, path: Path) -> None:
    _record(folder, "cgroup", str(path))


def record_mount_point(folder: Path, path: Path) -> None:
    """A folder elsewhere that was made to mount on; it goes where it is empty."""
    _record(folder, "mount-point", str(path))


def own(folder: Path) -> None:
    """Says whose the folder is, so that only one that nobody runs is cleared by another."""
    (folder / OWNER).write_text(f"{os.getpid()}\t{start_time(os.getpid())}")


def abandoned(folder: Path) -> bool:
    try:
        pid, began = (folder / OWNER).read_text().split("\t")
    except (OSError, ValueError):
        return True
    return start_time(int(pid)) != began


def _entries(folder: Path, kind: str) -> list[list[str]]:
    """Of the folder's record and those of the folders in it; somebody else may clear them meanwhile."""
    texts = []
    with contextlib.suppress(FileNotFoundError):
        for place in (folder, *(folder / name for name in os.listdir(folder))):
            with contextlib.suppress(OSError):
                texts.append((place / RECORD).read_text())
    lines = [line.split("\t") for text in texts for line in text.splitlines()]
    return [line[1:] for line in lines if line[0] == kind]


def _quietly(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _recorded(folder: Path) -> Iterator[int]:
    for pid, began in _entries(folder, "process"):
        if began and start_time(int(pid)) == began:
            yield int(pid)


def _groups(path: Path) -> list[Path]:
    """A control group and those in it, innermost first. Not by rglob, which raises when somebody else removes them meanwhile."""
    return [Path(place) for place, _, _ in os.walk(path, topdown=False)]


def _in_cgroups(folder: Path) -> Iterator[int]:
    """Processes in the recorded control groups: the pods'."""
    for (path,) in _entries(folder, "cgroup"):
        for group in _groups(Path(path)):
            with contextlib.suppress(OSError):
                yield from map(int, (group / "cgroup.procs").read_text().split())


def _until_gone(pids: list[int]) -> None:
    pause = threading.Event()
    for _ in range(ROUNDS_MAX):
        if not any(start_time(pid) for pid in pids):
            return
        pause.wait(PAUSE_SECONDS)


def mounts_under(place: Path) -> list[str]:
    """Innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if point == str(place) or point.startswith(f"{place}/")]


def _unmount(place: Path) -> None:
    for point in mounts_under(place):
        _quietly("umount", point) or _quietly("umount", "--lazy", point)


def _remove_cgroup(path: Path) -> None:
    """From the leaves up; a group is busy for a moment after its last process."""
    pause = threading.Event()
    for _ in range(ROUNDS_MAX):
        for group in _groups(path):
            with contextlib.suppress(OSError):
                group.rmdir()
        if not path.exists():
            return
        pause.wait(PAUSE_SECONDS)


def clear(folder: Path) -> None:
    """Ends, unmounts and removes all that the record names, and the folder. May be called again, and of nothing."""
    if not folder.exists():
        return
    pids = list(_recorded(folder))
    _kill(pids)
    _until_gone(pids)
    rest = list(_in_cgroups(folder))
    _kill(rest)
    _until_gone(rest)
    _unmount(folder)
    for (path,) in _entries(folder, "cgroup"):
        _remove_cgroup(Path(path))
    for (path,) in _entries(folder, "mount-point"):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
    if not mounts_under(folder):
        shutil.rmtree(folder, ignore_errors=True)


def clear_abandoned(parent: Path, pattern: str) -> list[Path]:
    """Clears what earlier runs that were killed have left; the folders that were."""
    left = [folder for folder in parent.glob(pattern) if folder.is_dir() and abandoned(folder)]
    for folder in left:
        clear(folder)
    return left


class Watcher:
    """A process that clears the folder when this one is gone, by whatever end."""

    def __init__(self, folder: Path) -> None:
        own(folder)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def close(self) -> None:
        """Clears now."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)


def main() -> None:
    sys.stdin.buffer.read()
    folder = Path(sys.argv[1])
    started = time.monotonic()
    clear(folder)
    if folder.exists():
        sys.stderr.write(f"kube: {folder} is not cleared after {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
