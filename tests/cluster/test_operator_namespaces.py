"""A pool in one namespace, its users in another; and what the API server refuses, on a real API server."""

from __future__ import annotations

from typing import Any

from kube_process import wait_for
from operator_process import (
    DEPLOYMENTS,
    DEPLOYMENTS_OWN,
    POOLS,
    SECONDS_MAX,
    Place,
    condition,
    deployment,
    pool,
)

FOREIGN = "kvcommons.io/foreign-children"


def test_a_deployment_elsewhere_gets_its_router_beside_the_pool(attended: Place, elsewhere: Place) -> None:
    """Engines stand in the deployment's namespace, router and credentials in the pool's, and nothing is left when the deployment goes."""
    tenancy = {"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "chat"}}}}
    attended.apply(pool(tenancy=tenancy))
    elsewhere.apply(deployment(poolRef={"name": "pool", "namespace": attended.namespace}))
    elsewhere.have(DEPLOYMENTS, "chat-engine")
    router = wait_for(lambda: routers(attended), "a router beside the pool", SECONDS_MAX)
    assert routers(elsewhere) == []
    assert "ownerReferences" not in router[0]["metadata"]
    seen = elsewhere.have(DEPLOYMENTS_OWN, "chat")
    assert FOREIGN in seen["metadata"]["finalizers"]
    assert elsewhere.list("secrets") == []
    elsewhere.delete(DEPLOYMENTS_OWN, "chat")
    elsewhere.gone(DEPLOYMENTS_OWN, "chat")
    assert routers(attended) == []
    assert attended.get(POOLS, "pool") is not None


def test_a_namespace_that_the_pool_does_not_allow_is_told_so(attended: Place, elsewhere: Place) -> None:
    """ResolvedRefs says that the pool is not for this namespace, and no router is made."""
    attended.apply(pool())
    elsewhere.apply(deployment(poolRef={"name": "pool", "namespace": attended.namespace}))
    seen = elsewhere.until(
        DEPLOYMENTS_OWN, "chat", lambda it: condition(it, "ResolvedRefs").get("status") == "False", "is told"
    )
    assert "allowedNamespaces" in condition(seen, "ResolvedRefs")["message"]
    assert routers(attended) == []


def test_what_the_api_server_refuses_is_said_and_holds_nothing_else_up(attended: Place) -> None:
    """A child of ours with another immutable field is refused: the condition says which and why; its siblings are made."""
    labels = {
        "app.kubernetes.io/managed-by": "kvcommons-operator",
        "kvcommons.io/deployment": "chat",
        "kvcommons.io/deployment-namespace": attended.namespace,
    }
    squatter = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat-engine", "labels": labels},
        "spec": {
            "selector": {"matchLabels": {"squatter": "yes"}},
            "template": {
                "metadata": {"labels": {"squatter": "yes"}},
                "spec": {"containers": [{"name": "one", "image": "none"}]},
            },
        },
    }
    attended.apply(squatter)
    attended.apply(deployment(pool_name=None))
    seen = attended.reason(DEPLOYMENTS_OWN, "chat", "Progressing", "ApplyRefused")
    assert "chat-engine" in condition(seen, "Progressing")["message"]
    assert condition(seen, "Ready")["status"] == "False"
    attended.have(DEPLOYMENTS, "chat-router")
    notes = wait_for(lambda: [e for e in events(attended) if e["reason"] == "ApplyRefused"], "an Event", SECONDS_MAX)
    assert "immutable" in str(notes[0]["note"])


def routers(place: Place) -> list[dict[str, Any]]:
    return [
        one
        for one in place.list(DEPLOYMENTS)
        if one["metadata"]["labels"].get("app.kubernetes.io/component") == "router"
    ]


def events(place: Place) -> list[dict[str, Any]]:
    return place.list("events.k8s.io/v1/events")
