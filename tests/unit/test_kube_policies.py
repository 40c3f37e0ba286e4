"""What the test cluster's enforcer of NetworkPolicies makes of selectors and rules, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from kube_policies import ANYWHERE, Snapshot, selects


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        ({}, True),
        ({"matchLabels": {"app": "engine"}}, True),
        ({"matchLabels": {"app": "engine", "role": "decode"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["router", "engine"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["engine"]}]}, False),
        ({"matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "role", "operator": "Exists"}]}, False),
    ],
)
def test_a_selector_takes_what_kubernetes_would_take(selector: dict[str, Any], taken: bool) -> None:
    """Labels and expressions are all to hold; an empty selector takes everything."""
    assert selects(selector, {"app": "engine"}) is taken


def pod(name: str, namespace: str, address: str, **labels: str) -> dict[str, Any]:
    ports = [{"name": "http", "containerPort": 8000}]
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "uid": name},
        "spec": {"nodeName": "node-1", "containers": [{"ports": ports}]},
        "status": {"podIP": address},
    }


class Given(Snapshot):
    """A moment that was made up."""

    def __init__(self, pods: list[dict[str, Any]], policies: list[dict[str, Any]]) -> None:
        self.pods = pods
        self.policies = policies
        self.namespaces = {"here": {"name": "here"}, "there": {"name": "there"}}


def policy(*rules: dict[str, Any]) -> dict[str, Any]:
    spec = {"podSelector": {"matchLabels": {"app": "engine"}}, "policyTypes": ["Ingress"], "ingress": list(rules)}
    return {"metadata": {"namespace": "here"}, "spec": spec}


ENGINE = pod("engine", "here", "10.0.0.1", app="engine")
NEAR, FAR = pod("near", "here", "10.0.0.2", app="router"), pod("far", "there", "10.0.0.3", app="router")
ROUTERS = {"podSelector": {"matchLabels": {"app": "router"}}}


def allowed(*rules: dict[str, Any]) -> set[tuple[str, str, str]]:
    given = Given([ENGINE, NEAR, FAR], [policy(*rules)])
    return {found for one in given.policies_of(ENGINE) for found in given.allowed(one, ENGINE)}


def test_a_pod_selector_alone_means_the_policy_s_own_namespace() -> None:
    """The same labels elsewhere are let in only by a namespace selector."""
    ports = [{"protocol": "TCP", "port": "http"}]
    assert allowed({"from": [ROUTERS], "ports": ports}) == {("10.0.0.2/32", "tcp", "8000")}
    there = {**ROUTERS, "namespaceSelector": {"matchLabels": {"name": "there"}}}
    assert allowed({"from": [there], "ports": ports}) == {("10.0.0.3/32", "tcp", "8000")}


def test_no_rule_lets_nobody_in_and_an_empty_one_everybody() -> None:
    """A policy without rules closes a pod; a rule without peers and ports opens it."""
    assert allowed() == set()
    assert allowed({}) == {(ANYWHERE, "", "")}
    assert not Given([NEAR], [policy()]).policies_of(NEAR), "another pod is not limited"
