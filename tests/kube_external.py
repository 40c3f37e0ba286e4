"""A cluster of the user's own, named on purpose, in place of the one that tests would start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kube_apiserver import ApiServer, free_port, own_address
from kube_binaries import Binaries
from kube_client import Client
from kube_process import Process

VARIABLE = "KVCOMMONS_TEST_KUBECONFIG"
PROXY_SECONDS_MAX = 30.0


def chosen() -> Path | None:
    """The kubeconfig that the user has named for tests; KUBECONFIG is never taken, since it may be one that somebody needs."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        pytest.fail(f"{VARIABLE} is {name!r}, which is no file; name a kubeconfig, or unset it", pytrace=False)
    return path


class External(ApiServer):
    """Reached through `kubectl proxy`, with whatever credentials the kubeconfig has. It can't be stopped or made to forget."""

    def __init__(self, folder: Path, binaries: Binaries, kubeconfig: Path) -> None:
        self.folder = folder
        self.binaries = binaries
        address = own_address()
        port = free_port(address)
        self._proxy = Process(
            "kubectl-proxy",
            [binaries["kubectl"], "--kubeconfig", str(kubeconfig), "proxy", f"--address={address}", f"--port={port}"],
            folder,
        )
        Client.__init__(self, f"http://{address}:{port}", None, "", kubeconfig, binaries["kubectl"])

    def start(self) -> None:
        self._proxy.start()
        self._proxy.wait_until(self._is_ready, "ready", PROXY_SECONDS_MAX)

    def stop(self) -> None:
        self._proxy.stop()

    def start_apiserver(self) -> None:
        refuse()

    def stop_apiserver(self) -> None:
        refuse()

    def expire(self) -> None:
        refuse()

    def wipe(self, *prefixes: str) -> None:
        refuse()


def refuse() -> None:
    pytest.skip(
        f"{VARIABLE} names a cluster of the user's, which tests neither stop nor break; unset it to run this one"
    )
