"""Keeps one test cluster running, to look at and to try things on: `make cluster`, and `make cluster ARGS=stop` from elsewhere.

python tests/kube_keep.py                 two nodes (root), or with --apiserver an API server alone
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
        binaries.bring("etcd", "kube-apiserver", "kubectl")
        return ApiServer(folder, binaries)
    binaries.bring(*kube_cluster.PROGRAMS)
    return Cluster(folder, binaries)


def keep(*, alone: bool) -> None:
    """Until Ctrl-C or SIGTERM."""
    kube_reaper.clear_abandoned(FOLDERS, f"{PREFIX}*")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
    watcher = kube_reaper.Watcher(folder)
    # Set before anything starts, so that an impatient Ctrl-C clears as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server = made(folder, alone=alone)
        server.start()
        say(f"export KUBECONFIG={server.kubeconfig}")
        say(f"alias kubectl={server.binaries['kubectl']}")
        say("It runs until Ctrl-C, or until `make cluster ARGS=stop` is called elsewhere.")
        signal.pause()
    except KeyboardInterrupt:
        say("ending")
    finally:
        watcher.close()


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
    parser.add_argument("command", nargs="?", choices=["start", "stop"], default="start")
    parser.add_argument("--apiserver", action="store_true", help="etcd and an API server alone; needs no root")
    chosen = parser.parse_args()
    if chosen.command == "stop":
        stop()
        return
    reason = None if chosen.apiserver else kube_cluster.obstacle()
    if reason:
        sys.exit(f"{reason}\nAn API server alone: make cluster ARGS=--apiserver")
    try:
        keep(alone=chosen.apiserver)
    except (BuildFailed, NotReady) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
