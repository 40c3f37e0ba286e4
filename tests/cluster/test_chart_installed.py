"""The chart on real kubelets: it says that it works, and goes in either order without leaving anything stuck."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube_chart import NAMESPACE, RELEASE, Helm
from kube_cluster import Cluster
from kube_process import wait_for
from operator_process import DEPLOYMENTS, DEPLOYMENTS_OWN, POOLS, Place, deployment, pool

SECONDS_MAX = 90.0
IN_USE = "kvcommons.io/pool-in-use"


@pytest.fixture
def place(cluster: Cluster, installed: Helm) -> Iterator[Place]:
    """A pool and a deployment that the operator has taken up; their engines need not run."""
    cluster.create_namespace("going")
    place = Place(cluster, "going")
    place.apply(pool(placement="sidecar"), deployment(drainSeconds=5))
    place.until(POOLS, "pool", lambda it: IN_USE in it["metadata"].get("finalizers", []), "is held", SECONDS_MAX)
    place.have(DEPLOYMENTS, "chat-router")
    yield place
    cluster.kubectl("delete", "namespace", "going", "--wait", "--timeout=240s", seconds_max=270)


def test_helm_test_says_that_the_operator_is_ready(installed: Helm) -> None:
    """`helm test` asks the operator through its Service, by a pod under `restricted`."""
    said = installed.run("test", RELEASE, "-n", NAMESPACE, "--timeout", "150s", "--logs")
    assert "Succeeded" in said


def test_the_operator_can_go_first(installed: Helm, cluster: Cluster, place: Place) -> None:
    """`helm uninstall` leaves the resources without finalizers; they and their children go without an operator."""
    try:
        installed.uninstall()
        assert not place.have(POOLS, "pool")["metadata"].get("finalizers")
        assert place.get(DEPLOYMENTS, "chat-router") is not None
        left = cluster.get("jobs,serviceaccounts,roles,rolebindings", "-n", NAMESPACE)["items"]
        assert [one["metadata"]["name"] for one in left if "kvcommons" in one["metadata"]["name"]] == []
        place.delete(POOLS, "pool")
        assert place.get(POOLS, "pool") is None
        place.delete(DEPLOYMENTS_OWN, "chat")
        place.gone(DEPLOYMENTS, "chat-router", SECONDS_MAX)
    finally:
        installed.install({})


def test_the_resources_can_go_first(installed: Helm, place: Place) -> None:
    """The deployment goes, then the pool that it held, then all that was theirs; nothing of the operator is left but its CRDs."""
    place.delete(POOLS, "pool")
    assert place.get(POOLS, "pool") is not None
    place.delete(DEPLOYMENTS_OWN, "chat")
    place.gone(POOLS, "pool", SECONDS_MAX)
    wait_for(lambda: not place.list(DEPLOYMENTS), "no Deployment is left", SECONDS_MAX)
    installed.uninstall()
    try:
        found = installed.run("list", "-n", NAMESPACE, "-q")
        assert not found.strip()
    finally:
        installed.install({})
