"""The cluster of two nodes that the tests here use."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from kube_cluster import Cluster
from kube_node import PAUSE_IMAGE
from kube_process import wait_for

NAMESPACE = "nodes-and-network"
DNS_READY = "http://{address}:8181/ready"


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """One for this module, gone afterwards."""
    cluster.create_namespace(NAMESPACE)
    yield NAMESPACE
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true")


def pause(name: str, node: str) -> dict[str, Any]:
    container = {"name": "main", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "pause"}}, "spec": spec}


def test_pods_run_on_both_nodes(cluster: Cluster, namespace: str) -> None:
    """A pod bound to each node becomes Ready there, with an address of that node's own range."""
    for node in cluster.nodes:
        cluster.apply(pause(f"on-{node.name}", node.name), namespace=namespace)
    cluster.kubectl("wait", "pods", "-l", "app=pause", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
    for pod in cluster.pods(namespace, "app=pause"):
        assert pod["status"]["podIP"].rpartition(".")[0] == cluster.node_of(pod).pods.rpartition(".")[0]


def test_a_killed_container_is_restarted(cluster: Cluster, namespace: str) -> None:
    """SIGKILL of a container's process is seen by its kubelet, which starts it again in the same pod."""
    cluster.apply(pause("killed", "node-1"), namespace=namespace)
    cluster.kubectl("wait", "pod/killed", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
    cluster.kill_container(namespace, "killed", "main")

    def restarts() -> int:
        pod = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/killed")
        return int(pod["status"]["containerStatuses"][0]["restartCount"])

    assert wait_for(restarts, "a restart", 60.0) == 1


def test_a_service_answers_from_here_by_its_name(cluster: Cluster) -> None:
    """Services' addresses and pods' answer to the tests, and the DNS knows Services by name."""
    pod = cluster.pods("kube-system", "app=coredns")[0]
    with urllib.request.urlopen(DNS_READY.format(address=pod["status"]["podIP"]), timeout=10) as answer:
        assert answer.status == 200
    assert cluster.resolve("kubernetes.default.svc.cluster.local") == cluster.service_address("default", "kubernetes")


def test_logs_reach_kubectl(cluster: Cluster) -> None:
    """The API server reaches the kubelets."""
    assert "CoreDNS" in cluster.kubectl("logs", "deployment/coredns", "-n", "kube-system")
