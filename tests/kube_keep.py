"""Keeps one test cluster running, to look at and to try things on: `make cluster`, and `make cluster ARGS=stop` from elsewhere.

python tests/kube_keep.py                 two nodes (root) with the project's images, or with --apiserver an API server alone
python tests/kube_keep.py --images DIR    the same with what `make images ARGS="--save DIR"` has built
python tests/kube_keep.py env             what a shell evaluates to reach it: eval "$(make -s cluster ARGS=env)"
python tests/kube_keep.py stop            ends every cluster of this machine that was kept so
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import kube_cluster
import kube_kept
import kube_reaper
from kube_apiserver import ApiServer
from kube_binaries import Binaries, BuildFailed
from kube_cluster import Cluster
from kube_process import NotReady, wait_for

FOLDERS = Path(tempfile.gettempdir())
PREFIX = "kvcommons-keep-"
STOP_SECONDS_MAX = 60.0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def made(folder: Path, *, alone: bool) -> ApiServer:
    binaries = Binaries()
    if alone:
        binaries.bring("etcd", "kube-apiserver", "kubectl", "helm")
        return ApiServer(folder, binaries)
    binaries.bring(*kube_cluster.PROGRAMS, "helm")
    return Cluster(folder, binaries)


def furnished(server: ApiServer, archives: list[Path] | None, *, bare: bool) -> None:
    """With images in its nodes, the files to try them, and a word about what comes next."""
    values = None
    if isinstance(server, Cluster) and not bare:
        say("both nodes are ready; bringing the images and the model")
        values = kube_kept.load(server, archives)
    kube_kept.write(server, values)
    say(kube_kept.environment(server.folder))
    say(kube_kept.next_steps() if values is not None else kube_kept.LAST_LINE)


def keep(*, alone: bool, bare: bool, archives: list[Path] | None) -> None:
    """Until Ctrl-C or SIGTERM."""
    kube_reaper.clear_abandoned(FOLDERS, f"{PREFIX}*")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
    watcher = kube_reaper.Watcher(folder)
    # Set before anything starts, so that an impatient Ctrl-C clears as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server = made(folder, alone=alone)
        server.start()
        furnished(server, archives, bare=bare)
        signal.pause()
    except KeyboardInterrupt:
        say("ending")
    finally:
        watcher.close()


def kept() -> Path:
    """The newest that runs and is ready for use."""
    ready = [
        folder
        for folder in FOLDERS.glob(f"{PREFIX}*")
        if not kube_reaper.abandoned(folder) and (folder / kube_kept.FILES / kube_kept.READY).exists()
    ]
    if not ready:
        sys.exit("no cluster is kept on this machine, or it is not ready yet: make cluster, in another terminal")
    return max(ready, key=lambda folder: folder.stat().st_mtime)


def gone(folder: Path) -> bool:
    return not folder.exists()


def stop() -> None:
    """Ends what others keep, and clears what they left."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        if not kube_reaper.abandoned(folder):
            pid = int((folder / kube_reaper.OWNER).read_text().split("\t")[0])
            os.kill(pid, signal.SIGTERM)
            wait_for(partial(gone, folder), f"the end of {folder}", STOP_SECONDS_MAX)
            say(f"ended {folder}")
    for folder in kube_reaper.clear_abandoned(FOLDERS, f"{PREFIX}*"):
        say(f"cleared {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["start", "env", "stop"], default="start")
    parser.add_argument("--apiserver", action="store_true", help="etcd and an API server alone; needs no root")
    parser.add_argument("--bare", action="store_true", help="two nodes without the project's images")
    parser.add_argument(
        "--images", type=Path, help="a folder of archives by `make images` instead of images put together here"
    )
    chosen = parser.parse_args()
    if chosen.command == "stop":
        stop()
        return
    if chosen.command == "env":
        say(kube_kept.environment(kept()))
        return
    reason = None if chosen.apiserver else kube_cluster.obstacle()
    if reason:
        sys.exit(f"{reason}\nAn API server alone: make cluster ARGS=--apiserver")
    try:
        archives = kube_kept.archives_of(chosen.images) if chosen.images else None
        keep(alone=chosen.apiserver, bare=chosen.bare, archives=archives)
    except (BuildFailed, NotReady, kube_kept.NoImages) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
