"""Who may connect to whom: the pods and NetworkPolicies that the builders make, what is meant by them, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import operator_examples as examples
from kube_client import Client
from kvcommons_operator import names
from kvcommons_operator.api import parse_pool
from kvcommons_operator.observed import Install, Manifest
from kvcommons_operator.plan import plan_deployment, plan_pool

OUTSIDE = "outside"
"""Somebody who is no pod: another machine."""
METRICS, FRIENDS = {"purpose": "metrics"}, {"team": "friends"}
TRANSPORT = parse_pool(examples.pool()).spec.transport.port
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """A pod: one that a child's template makes, or one of somebody else's."""

    namespace: str
    labels: Labels


@dataclass(frozen=True)
class World:
    """Pods by the names that the tables have for them."""

    namespaces: Mapping[str, Labels]
    pods: Mapping[str, Place]
    policies: Sequence[Manifest]
    allowed: Mapping[tuple[str, int], frozenset[str]]
    """By pod and port: who may connect; nobody else, but a pod to itself."""

    def questions(self) -> Iterator[tuple[str, str, int, bool]]:
        """(who, to whom, port, whether he may) of all pairs."""
        for (target, port), friends in self.allowed.items():
            for source in (*self.pods, OUTSIDE):
                if source != target:
                    yield source, target, port, source in friends

    def make_namespaces(self, server: Client) -> None:
        for name, labels in self.namespaces.items():
            server.create_namespace(name, dict(labels))

    def settle(self, server: Client, spec_of: Callable[[str], Manifest]) -> None:
        """Makes the policies and the pods, with the labels that matter and specifications of the test's.

        Policies bear no labels: an operator that runs there as well would take them for leavings of a pool that is gone.
        """
        policies, pods = [], []
        for one in self.policies:
            named = {key: one["metadata"][key] for key in ("name", "namespace")}
            policies.append({**one, "metadata": named})
        for name, place in self.pods.items():
            metadata = {"name": name, "namespace": place.namespace, "labels": dict(place.labels)}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec_of(name)})
        server.apply(*policies, *pods)


def templates(manifests: Sequence[Manifest]) -> Iterator[tuple[str, str, Labels]]:
    """(component, namespace, labels) of the pods that these make."""
    for one in manifests:
        if "template" in (one.get("spec") or {}):
            labels = one["spec"]["template"]["metadata"]["labels"]
            yield labels[names.COMPONENT], one["metadata"]["namespace"], labels


def world(placement: str, prefix: str) -> World:
    """Two pools with three Redis each, deployments beside them, one of a guest where a pool can have guests, and strangers."""
    home, system, per_node = f"{prefix}-pool", f"{prefix}-operator", placement == "perNode"
    install = replace(examples.INSTALL, namespace=system, metrics_namespaces=METRICS)
    made = {mark: children(install, **one) for mark, one in resources(placement, home, f"{prefix}-guest").items()}
    pods = {
        f"{mark}{component}": Place(namespace, labels)
        for mark, manifests in made.items()
        for component, namespace, labels in templates(manifests)
    }
    for several in ("chat-engine", names.INDEX, *([names.CACHE_NODE] if per_node else [])):
        pods[f"{several}-2"] = pods[several]
    pods |= others(prefix, install.operator_labels, home, pods)
    policies = [one for manifests in made.values() for one in manifests if one["kind"] == "NetworkPolicy"]
    marked: dict[str, Labels] = {f"{prefix}-metrics": METRICS, f"{prefix}-friends": FRIENDS}
    namespaces: dict[str, Labels] = {place.namespace: marked.get(place.namespace, {}) for place in pods.values()}
    return World(namespaces, pods, policies, (allowed_per_node if per_node else allowed_sidecar)(pods))


def resources(placement: str, home: str, away: str) -> dict[str, dict[str, Manifest]]:
    """Resources, by what the names of their pods begin with here. The guest's deployment has the name of the first."""
    friends = {"networkPolicy": {"allowFrom": [{"matchLabels": FRIENDS}]}}
    wish: dict[str, Any] = {"placement": placement, "index": {"managed": {"replicas": 3}}, "security": friends}
    if placement == "perNode":
        wish["tenancy"] = {"allowedNamespaces": {"from": "All"}}
    pool, other = examples.pool("commons", home, **wish), examples.pool("other", home, **wish)
    ref = {"poolRef": {"name": "commons", "namespace": home}}
    rival = examples.deployment("rival", home, poolRef={"name": "other"})
    found = {
        "": {"pool": pool},
        "other-": {"pool": other},
        "chat-": {"pool": pool, "deployment": examples.deployment("chat", home, **ref, **friends)},
        "second-": {"pool": pool, "deployment": examples.deployment("second", home, **ref)},
        "rival-": {"pool": other, "deployment": rival},
    }
    if placement == "perNode":
        found["guest-"] = {"pool": pool, "deployment": examples.deployment("chat", away, **ref)}
    return found


def children(install: Install, pool: Manifest, deployment: Manifest | None = None) -> list[Manifest]:
    """Of the deployment if there is one, else of the pool."""
    if deployment is None:
        return list(plan_pool(pool, examples.pool_world(install=install)).apply)
    return list(plan_deployment(deployment, examples.world(install=install, pool=pool)).apply)


def others(prefix: str, operator: Labels, home: str, pods: Mapping[str, Place]) -> dict[str, Place]:
    """Pods that none of these resources make."""
    strangers = f"{prefix}-strangers"
    # Labels are anybody's to write in his own namespace.
    forged = {
        f"false-{name}": Place(strangers, pods[name].labels) for name in pods if name.endswith(("router", "index"))
    }
    return forged | {
        "false-operator": Place(strangers, operator),
        "operator": Place(f"{prefix}-operator", operator),
        "not-the-operator": Place(f"{prefix}-operator", {"app": "other"}),
        "prometheus": Place(f"{prefix}-metrics", {"app": "prometheus"}),
        "friend": Place(f"{prefix}-friends", {"app": "gateway"}),
        "stranger": Place(strangers, {"app": "stranger"}),
        "neighbour": Place(home, {"app": "stranger"}),
    }


Allowed = dict[tuple[str, int], frozenset[str]]


def allowed_anywhere(pods: Mapping[str, Place]) -> Allowed:
    """What docs/operator.md says, of both placements."""
    return {
        ("chat-engine", names.ENGINE_PORT): frozenset({"chat-router", "prometheus", "friend"}),
        ("second-engine", names.ENGINE_PORT): frozenset({"second-router", "prometheus"}),
        ("chat-router", names.ROUTER_PORT): frozenset({*pods, OUTSIDE}),
    }


def allowed_per_node(pods: Mapping[str, Place]) -> Allowed:
    """With a cache node on each Kubernetes node."""
    nodes, indexes = {"cache-node", "cache-node-2"}, {"index", "index-2"}
    routers = {"chat-router", "second-router", "guest-router"}
    return allowed_anywhere(pods) | {
        ("guest-engine", names.ENGINE_PORT): frozenset({"guest-router", "prometheus"}),
        ("cache-node", names.CONTROL_PORT): frozenset({"operator", "cache-node-2", "prometheus", "friend"}),
        ("cache-node", TRANSPORT): frozenset({"cache-node-2"}),
        ("index", names.REDIS_PORT): frozenset(nodes | indexes | routers),
        ("index", names.SENTINEL_PORT): frozenset(nodes | indexes | routers),
        ("other-index", names.REDIS_PORT): frozenset({"other-cache-node", "rival-router"}),
    }


def allowed_sidecar(pods: Mapping[str, Place]) -> Allowed:
    """With a cache node in each engine's pod."""
    engines, indexes = {"chat-engine", "chat-engine-2", "second-engine"}, {"index", "index-2"}
    routers = {"chat-router", "second-router"}
    return allowed_anywhere(pods) | {
        ("chat-engine", names.CONTROL_PORT): frozenset({"operator", *engines, "prometheus", "friend"}),
        ("second-engine", names.CONTROL_PORT): frozenset({"operator", *engines, "prometheus"}),
        ("chat-engine", TRANSPORT): frozenset(engines),
        ("second-engine", TRANSPORT): frozenset(engines),
        ("index", names.REDIS_PORT): frozenset(engines | indexes | routers),
        ("index", names.SENTINEL_PORT): frozenset(engines | indexes | routers),
        ("other-index", names.REDIS_PORT): frozenset({"rival-engine", "rival-router"}),
    }


class Selecting(Protocol):
    """Who knows what a label selector takes."""

    def pods(self, namespace: str, selector: Manifest) -> frozenset[str]:
        """Names of a namespace's pods."""

    def namespaces(self, selector: Manifest) -> frozenset[str]:
        """Names of namespaces."""


@dataclass(frozen=True)
class Judge:
    """Evaluates NetworkPolicies for ingress; refuses fields that it does not know, so that none is passed over."""

    world: World
    policies: Sequence[Manifest]
    selecting: Selecting

    def may(self, source: str, target: str, port: int) -> bool:
        """Whether all policies together let this connection through."""
        limiting = [one for one in self.policies if self._limits(one, target)]
        return not limiting or any(self._admits(one, source, port) for one in limiting)

    def _limits(self, policy: Manifest, target: str) -> bool:
        spec, namespace = policy["spec"], policy["metadata"]["namespace"]
        assert set(spec) <= {"podSelector", "policyTypes", "ingress"}, f"not understood: {sorted(spec)}"
        assert spec["policyTypes"] == ["Ingress"]
        mine = self.world.pods[target].namespace == namespace
        return mine and target in self.selecting.pods(namespace, spec["podSelector"])

    def _admits(self, policy: Manifest, source: str, port: int) -> bool:
        for rule in policy["spec"].get("ingress", ()):
            assert set(rule) <= {"from", "ports"}, f"not understood: {sorted(rule)}"
            if self._is_port(rule, port) and self._is_peer(rule, policy["metadata"]["namespace"], source):
                return True
        return False

    def _is_port(self, rule: Manifest, port: int) -> bool:
        for one in rule.get("ports", ()):
            assert set(one) == {"protocol", "port"}, f"not understood: {one}"
            assert isinstance(one["port"], int), f"not understood: {one}"
        return "ports" not in rule or {"protocol": "TCP", "port": port} in rule["ports"]

    def _is_peer(self, rule: Manifest, home: str, source: str) -> bool:
        if not rule.get("from"):  # none named: everybody
            return True
        if source == OUTSIDE:
            return False
        namespace = self.world.pods[source].namespace
        for peer in rule["from"]:
            assert set(peer) <= {"podSelector", "namespaceSelector"}, f"not understood: {peer}"
            spaces = self.selecting.namespaces(peer["namespaceSelector"]) if "namespaceSelector" in peer else {home}
            if namespace in spaces and source in self.selecting.pods(namespace, peer.get("podSelector", {})):
                return True
        return False
