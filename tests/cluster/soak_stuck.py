"""Pods that can't start on real kubelets: what a person reads, made of the kubelet's and the controllers' own words."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from kube_chart import Helm
from kube_cluster import Cluster
from kube_product import ENGINE_IMAGE
from operator_process import DEPLOYMENTS_OWN, POOLS, Place, condition, deployment, pool

SECONDS_MAX = 120.0
NAMESPACE = "stuck"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {
    "name": "q",
    "revision": COMMIT,
    "source": {"hub": {"repo": "a/b", "tokenSecretRef": {"name": "hub", "key": "token"}}},
}
FIELD = "spec.model.source.hub.tokenSecretRef"


@pytest.fixture
def place(cluster: Cluster, installed: Helm) -> Iterator[Place]:
    """A namespace that enforces Pod Security `restricted`."""
    cluster.create_namespace(NAMESPACE, {"pod-security.kubernetes.io/enforce": "restricted"})
    yield Place(cluster, NAMESPACE)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=240s", seconds_max=270)


def told(place: Place, which: str, words: str, kind: str = DEPLOYMENTS_OWN, name: str = "chat") -> str:
    """A condition's message, once it has these words."""
    found = place.until(kind, name, lambda it: words in condition(it, which).get("message", ""), words, SECONDS_MAX)
    return str(condition(found, which)["message"])


def test_what_keeps_pods_from_starting_is_said_with_its_remedy(place: Place) -> None:
    """A Secret, then its key, then an image, on the deployment; Pod Security on the pool. Each goes when it is mended."""
    image = {"image": "localhost/kvcommons-none:1"}
    place.apply(pool(), deployment(pool_name=None, model=HUB, engine=image))
    assert "spec.engine.image" in told(place, "Progressing", "localhost/kvcommons-none:1")
    place.merge(DEPLOYMENTS_OWN, "chat", {"spec": {"engine": {"image": ENGINE_IMAGE}}})
    message = told(place, "ResolvedRefs", "does not exist")
    assert f"Secret {NAMESPACE}/hub does not exist: create it, or correct {FIELD}" in message
    data = {"other": base64.b64encode(b"x").decode()}
    place.create("secrets", {"metadata": {"name": "hub"}, "data": data})
    assert FIELD in told(place, "ResolvedRefs", f"Secret {NAMESPACE}/hub has no key token")
    place.merge("secrets", "hub", {"data": {"token": data["other"]}})
    place.reason(DEPLOYMENTS_OWN, "chat", "ResolvedRefs", "ResolvedRefs")
    refused = told(place, "Progressing", "may not make its pods", POOLS, "pool")
    assert "violates PodSecurity" in refused
    assert "Pod Security level" in refused
