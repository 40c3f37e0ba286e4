"""Who may not connect is refused, and who must can: the operator's NetworkPolicies, enforced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kube_policies
import kube_product
import pytest
from kube_cluster import Cluster
from kube_served import Served

OUTSIDE = "outsiders"
CONNECT = """
import errno, socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("open")
except OSError as error:
    print("refused" if error.errno == errno.EHOSTUNREACH else f"failed: {error}")
"""


def visitor() -> dict[str, Any]:
    """A pod that is none of ours."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "main",
        "image": f"localhost/kvcommons-node:{kube_product.TAG}",
        "imagePullPolicy": "Never",
        "command": ["sleep", "3600"],
        "securityContext": security,
    }
    pod = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": pod, "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "visitor"}, "spec": spec}


@pytest.fixture
def outsiders(cluster: Cluster, served: Served) -> Iterator[list[str]]:
    """Namespaces with a pod that nobody has let in: one of its own, and the engines' own."""
    cluster.create_namespace(OUTSIDE)
    homes = [OUTSIDE, served.namespace]
    for home in homes:
        cluster.apply(visitor(), namespace=home)
    for home in homes:
        cluster.kubectl("wait", "pod/visitor", "-n", home, "--for=condition=Ready", "--timeout=60s")
    kube_policies.enforce(cluster)
    yield homes
    kube_policies.relax(cluster)
    cluster.kubectl("delete", "pod", "visitor", "-n", served.namespace)
    cluster.kubectl("delete", "namespace", OUTSIDE, "--wait")


def attempt(cluster: Cluster, home: str, pod: dict[str, Any], port: int) -> str:
    address = pod["status"]["podIP"]
    command = ("exec", "visitor", "-n", home, "--", "python3", "-c", CONNECT, address, str(port))
    return cluster.kubectl(*command).strip()


def test_a_denied_connection_is_denied(cluster: Cluster, served: Served, outsiders: list[str]) -> None:
    """A stranger reaches neither engines nor cache nodes nor the index, but the router; and the router still reaches its engines."""
    keeper = "cache-node" if served.placement == "perNode" else "engine"
    closed = [(served.pods("engine")[0], 8000), (served.pods(keeper)[0], 9470), (served.pods("index")[0], 6379)]
    for home in outsiders:
        for pod, port in closed:
            assert attempt(cluster, home, pod, port) == "refused", (home, pod["metadata"]["name"], port)
        assert attempt(cluster, home, served.pods("router")[0], 8000) == "open"
    assert served.router().chat("Who may speak to whom?", tokens=4).tokens
