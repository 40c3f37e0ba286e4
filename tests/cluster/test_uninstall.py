"""The chart goes in either order and leaves nothing stuck, from real kubelets on which a model is served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube_chart import NAMESPACE, Helm
from kube_cluster import Cluster
from kube_process import wait_for
from kube_served import NAME, POOL, Served
from operator_process import DEPLOYMENTS, DEPLOYMENTS_OWN, POOLS, Place, deployment, pool

SECONDS_MAX = 90.0
IN_USE = "kvcommons.io/pool-in-use"

# The last ones that use these engines: nobody who comes later needs the chart, so that it is not installed again.
pytestmark = pytest.mark.parametrize("served", ["perNode"], indirect=True)


def held(place: Place, name: str) -> list[str]:
    """The finalizers of a pool."""
    return list(place.have(POOLS, name)["metadata"].get("finalizers", ()))


@pytest.fixture
def going(cluster: Cluster, installed: Helm) -> Iterator[Place]:
    """A pool and a deployment that the operator has taken up; their engines need not run."""
    cluster.create_namespace("going")
    place = Place(cluster, "going")
    place.apply(pool(placement="sidecar"), deployment(drainSeconds=5))
    place.until(POOLS, "pool", lambda it: IN_USE in it["metadata"].get("finalizers", []), "is held", SECONDS_MAX)
    place.have(DEPLOYMENTS, "chat-router")
    yield place
    cluster.kubectl("delete", "namespace", "going", "--wait=false")


def test_the_operator_can_go_first(installed: Helm, cluster: Cluster, served: Served, going: Place) -> None:
    """`helm uninstall` leaves engines that answer and resources without finalizers, which go, with their children, without an operator;
    installed again, it takes over those that have stayed."""
    staying = Place(cluster, served.namespace)
    assert IN_USE in held(staying, POOL)
    installed.uninstall()
    assert held(going, "pool") == held(staying, POOL) == []
    assert going.get(DEPLOYMENTS, "chat-router") is not None
    left = cluster.get("jobs,serviceaccounts,roles,rolebindings", "-n", NAMESPACE)["items"]
    assert [one["metadata"]["name"] for one in left if "kvcommons" in one["metadata"]["name"]] == []
    assert served.router().chat("Is anybody there?", tokens=4).tokens
    going.delete(POOLS, "pool")
    assert going.get(POOLS, "pool") is None
    going.delete(DEPLOYMENTS_OWN, "chat")
    going.gone(DEPLOYMENTS, "chat-router", SECONDS_MAX)
    installed.install({})
    wait_for(lambda: IN_USE in held(staying, POOL), "the operator has taken over", SECONDS_MAX)


def test_the_resources_can_go_first(installed: Helm, cluster: Cluster, served: Served) -> None:
    """The deployment goes, then the pool that it held, then all that was theirs; nothing of the operator is left but its CRDs."""
    place = Place(cluster, served.namespace)
    place.delete(POOLS, POOL)
    assert place.get(POOLS, POOL) is not None
    place.delete(DEPLOYMENTS_OWN, NAME)
    place.gone(POOLS, POOL, SECONDS_MAX)
    served.stop()
    wait_for(lambda: not place.list(DEPLOYMENTS), "no Deployment is left", SECONDS_MAX)
    installed.uninstall()
    found = installed.run("list", "-n", NAMESPACE, "-q")
    assert not found.strip()
