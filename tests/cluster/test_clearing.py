"""A test cluster leaves nothing behind, however it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kube_binaries
import kube_cluster
import kube_reaper
import pytest
from kube_process import wait_for

KEEP = Path(__file__).resolve().parent.parent / "kube_keep.py"
CLEARED_SECONDS_MAX = 60.0


@pytest.fixture(params=["apiserver", "nodes"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A cluster that `make cluster` keeps, in a folder for temporary files of its own; an API server alone, and with nodes."""
    options = ["--apiserver"] if request.param == "apiserver" else ["--bare"]
    reason = None if "--apiserver" in options else kube_cluster.obstacle()
    if reason:
        pytest.skip(reason)
    kube_binaries.Binaries().bring(
        *(["etcd", "kube-apiserver", "kubectl"] if "--apiserver" in options else kube_cluster.PROGRAMS)
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(KEEP.parent)}
    with subprocess.Popen(
        [sys.executable, str(KEEP), *options], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process
        process.kill()


def test_two_that_clear_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A run that was killed is cleared by its own watcher, and by the next run if that begins meanwhile."""
    folder, group = tmp_path / "cluster", tmp_path / "group"
    folder.mkdir()
    kube_reaper.record_cgroup(folder, group)
    for number in range(2_000):
        (group / f"pod-{number % 40}" / f"container-{number}").mkdir(parents=True)
    with ThreadPoolExecutor(4) as workers:
        list(workers.map(kube_reaper.clear, [folder] * 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
def test_a_killed_keeper_leaves_no_process_and_no_mount(kept: subprocess.Popen[str], tmp_path: Path) -> None:
    """SIGKILL of whoever keeps a cluster: its processes end, its mounts and control groups go, and so does its folder."""
    assert kept.stdout is not None
    assert any(line.startswith("export KUBECONFIG=") for line in kept.stdout), "it ended before it was ready"
    folder = next(tmp_path.iterdir())
    made = [line.split("\t") for line in (folder / kube_reaper.RECORD).read_text().splitlines()]
    processes = [(int(line[1]), line[2]) for line in made if line[0] == "process"]
    assert all(kube_reaper.start_time(pid) == began for pid, began in processes)
    kept.kill()
    wait_for(lambda: not folder.exists(), "a cleared folder", CLEARED_SECONDS_MAX)
    assert not [pid for pid, began in processes if kube_reaper.start_time(pid) == began]
    assert not [line[1] for line in made if line[0] in ("cgroup", "mount-point") and Path(line[1]).exists()]
    assert not kube_reaper.mounts_under(tmp_path)
