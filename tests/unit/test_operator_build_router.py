"""Routers, Services and ways in: settings that the router takes, rights that are few, two namespaces."""

from __future__ import annotations

from typing import Any

import operator_cases as cases
import operator_examples as examples
import pytest
from kvcommons_operator.observed import Manifest
from kvcommons_operator.plan import plan_deployment
from kvcommons_router.settings import RouterSettings, load


def children(ifd: Manifest, pool: Manifest | None = None) -> list[Manifest]:
    world = examples.world(apis=frozenset(examples.OPTIONAL), pool=pool or examples.pool())
    return list(plan_deployment(ifd, world).apply)


def router(manifests: list[Manifest]) -> Manifest:
    (found,) = [
        one
        for one in manifests
        if one["kind"] == "Deployment" and one["metadata"]["labels"]["app.kubernetes.io/component"] == "router"
    ]
    return found


def settings_of(manifests: list[Manifest]) -> RouterSettings:
    """What the router reads out of its environment."""
    (container,) = router(manifests)["spec"]["template"]["spec"]["containers"]
    environ = {one["name"]: one.get("value", "redis://from-a-secret/0") for one in container["env"]}
    return load(None, environ | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {}, {})


@pytest.mark.parametrize("name", cases.deployments())
def test_the_router_takes_the_settings_that_it_is_given(name: str) -> None:
    """Every variable is one that the router knows, with a value that it takes."""
    ifd, pool = cases.deployments()[name]
    world = examples.world(apis=frozenset(examples.OPTIONAL), pool=pool)
    settings = settings_of(list(plan_deployment(ifd, world).apply))
    kubernetes = settings.router.kubernetes
    assert kubernetes is not None
    assert kubernetes.namespace == ifd["metadata"]["namespace"]
    assert kubernetes.names == ("smol",) or name == "hub"
    assert bool(settings.index.url) is (pool is not None)


def test_limits_and_weights_reach_the_router() -> None:
    """Percents become shares, quantities bytes; bodies may be held that a single one may be as large as."""
    found = settings_of(children(cases.deployments()["everything"][0])).router
    assert found.policy.value == "leastLoad"
    assert found.cost.memory_credit == 0.9
    assert found.cost.decode_seconds == 0.004
    assert found.limits.requests_max == 10
    assert found.limits.body_bytes_max == found.limits.bodies_bytes_max == 512 << 20
    assert str(found.api_keys) == "/etc/kvcommons/router/keys.json"


def test_the_router_names_cache_nodes_as_they_name_themselves() -> None:
    """With a DaemonSet a node is called as its machine, with sidecars as its pod."""
    for placement, by in (("perNode", "nodeName"), ("sidecar", "podName")):
        found = settings_of(children(examples.deployment(), examples.pool(placement=placement))).router.kubernetes
        assert found is not None
        assert found.node_by == by


def test_the_selector_of_the_router_finds_engines_and_nothing_else() -> None:
    """The labels that it selects by are those of engine pods; those of routers and cache nodes differ."""
    manifests = children(examples.deployment())
    kubernetes = settings_of(manifests).router.kubernetes
    assert kubernetes is not None
    wanted = dict(part.split("=") for part in kubernetes.selector.split(","))
    engine = examples.named(manifests, "Deployment", "chat-engine")["spec"]["template"]["metadata"]["labels"]
    assert wanted.items() <= engine.items()
    assert not wanted.items() <= router(manifests)["spec"]["template"]["metadata"]["labels"].items()


def test_the_router_may_watch_pods_and_nothing_else() -> None:
    """Its Role is in the engines' namespace and grants to its account three verbs on pods."""
    manifests = children(examples.deployment())
    (rule,) = examples.named(manifests, "Role")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    (subject,) = examples.named(manifests, "RoleBinding")["subjects"]
    spec = router(manifests)["spec"]["template"]["spec"]
    assert (subject["name"], subject["namespace"]) == (spec["serviceAccountName"], "llm")


def test_an_own_account_of_the_router_is_the_one_that_is_given_the_rights() -> None:
    """Where the user names a ServiceAccount, the binding names it too."""
    manifests = children(cases.deployments()["everything"][0])
    (subject,) = examples.named(manifests, "RoleBinding")["subjects"]
    assert subject["name"] == router(manifests)["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


def test_a_router_for_another_namespace_stands_beside_the_pool() -> None:
    """Credentials and salts stay with the pool: the router, its Service and its budget are there, without an owner reference;
    the right to watch pods is where the engines are, and so is a Service with the deployment's name."""
    ifd, pool = cases.deployments()["other namespace"]
    manifests = children(ifd, pool)
    there = [one for one in manifests if one["metadata"]["namespace"] == "llm"]
    assert {one["kind"] for one in there} >= {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"}
    assert not any("ownerReferences" in one["metadata"] for one in there)
    for one in there:
        labels = one["metadata"]["labels"]
        assert (labels["kvcommons.io/deployment"], labels["kvcommons.io/deployment-namespace"]) == ("chat", "team-a")
    assert examples.named(manifests, "Role")["metadata"]["namespace"] == "team-a"
    alias = examples.named(manifests, "Service", "chat")
    service = next(one for one in there if one["kind"] == "Service")["metadata"]["name"]
    assert alias["spec"]["externalName"] == f"{service}.llm.svc.cluster.local"
    mounted = [one for one in manifests if one["metadata"]["namespace"] == "team-a"]
    assert not any("secret" in volume for spec in examples.pod_specs(mounted) for volume in spec["volumes"])


def test_two_deployments_of_one_name_never_meet_beside_the_pool() -> None:
    """Routers of team-a/chat, team-b/chat and llm/chat have different names and select different pods."""
    pool = examples.pool(tenancy={"allowedNamespaces": {"from": "All"}})
    ref = {"poolRef": {"name": "commons", "namespace": "llm"}}
    found = [router(children(examples.deployment("chat", space, **ref), pool)) for space in ("team-a", "team-b", "llm")]
    assert len({one["metadata"]["name"] for one in found}) == 3
    selectors = [frozenset(one["spec"]["selector"]["matchLabels"].items()) for one in found]
    assert len(set(selectors)) == 3


def test_the_service_has_the_deployments_name() -> None:
    """Clients reach a deployment by its own name, and the status says at which URL."""
    ifd = examples.deployment(service={"port": 80})
    service = examples.named(children(ifd), "Service", "chat")
    assert service["spec"]["ports"][0]["port"] == 80
    status = plan_deployment(ifd, examples.world()).status
    assert status["url"] == "http://chat.llm.svc.cluster.local:80/v1"


def test_a_router_that_drains_is_not_restarted() -> None:
    """A router that goes answers 503 on /health: that takes it out of the Service, and does not kill it."""
    (container,) = router(children(examples.deployment()))["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    assert "httpGet" not in container["livenessProbe"]


def test_a_route_is_attached_to_the_gateway_that_is_named() -> None:
    """The HTTPRoute leads to the routers' Service; a Gateway without a namespace is one of the deployment's own."""
    route = examples.named(children(cases.deployments()["everything"][0]), "HTTPRoute")
    assert route["spec"]["parentRefs"] == [{"name": "gate", "namespace": "llm"}]
    assert route["spec"]["rules"][0]["backendRefs"] == [{"name": "chat", "port": 80}]
    assert route["spec"]["hostnames"] == ["llm.example.com"]


def test_a_deployment_without_a_pool_has_a_salt_of_its_own() -> None:
    """Tenants are kept apart without a pool as well."""
    world: dict[str, Any] = {"pool": None}
    manifests = list(plan_deployment(examples.deployment(poolRef=None), examples.world(**world)).apply)
    salt = examples.named(manifests, "Secret")
    sources = router(manifests)["spec"]["template"]["spec"]["volumes"]
    (projected,) = [volume["projected"] for volume in sources if "projected" in volume]
    assert projected["sources"][0]["secret"]["name"] == salt["metadata"]["name"]
