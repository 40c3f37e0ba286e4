"""The chart on a test cluster, by the real helm."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import kube_product
from kube_apiserver import ApiServer

CHART = Path(__file__).resolve().parent.parent / "charts" / "kvcommons"
RELEASE = "kvcommons"
NAMESPACE = "kvcommons-system"
HELM_SECONDS_MAX = 300
# Our images as they were built and imported here.
LOCAL_IMAGES = {
    "image": {"registry": "localhost", "pullPolicy": "Never"},
    "images": {
        **{name: {"tag": kube_product.TAG} for name in kube_product.NAMES},
        "index": kube_product.REDIS_IMAGE,
    },
}


class Helm:
    """helm with a cluster's administrator."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server

    def run(self, *arguments: str, seconds_max: float = HELM_SECONDS_MAX) -> str:
        home = self.server.folder / "helm"
        environment = {
            "HOME": str(home),
            "HELM_CACHE_HOME": str(home),
            "HELM_CONFIG_HOME": str(home),
            "HELM_DATA_HOME": str(home),
        }
        command = [self.server.binaries["helm"], "--kubeconfig", str(self.server.kubeconfig), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds_max, env=environment
        )
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout

    def install(self, values: dict[str, Any], *options: str, release: str = RELEASE, namespace: str = NAMESPACE) -> str:
        """`helm upgrade --install`, waiting until all is ready; values on top of those of the local images."""
        path = self.server.folder / f"values-{release}.json"
        path.write_text(json.dumps({**LOCAL_IMAGES, **values}))
        return self.run(
            "upgrade",
            release,
            str(CHART),
            "--install",
            "--namespace",
            namespace,
            "--create-namespace",
            "--values",
            str(path),
            "--wait",
            "--timeout",
            f"{HELM_SECONDS_MAX - 30}s",
            *options,
        )

    def uninstall(self, release: str = RELEASE, namespace: str = NAMESPACE) -> str:
        return self.run("uninstall", release, "--namespace", namespace, "--wait", "--timeout", "120s")
