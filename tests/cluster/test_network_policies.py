"""Who may connect to whom, by the NetworkPolicies that the operator makes, as an API server keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

import network_access
import pytest
from kube_apiserver import ApiServer
from kube_client import Client
from kvcommons_operator.observed import Manifest
from network_access import Judge

PAUSE = {"name": "main", "image": "pause"}
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"


@dataclass
class Asked:
    """An API server's own word on what label selectors take."""

    server: Client
    _known: dict[str, frozenset[str]] = field(default_factory=dict)

    def pods(self, namespace: str, selector: Manifest) -> frozenset[str]:
        return self._names(f"/api/v1/namespaces/{namespace}/pods", selector)

    def namespaces(self, selector: Manifest) -> frozenset[str]:
        return self._names("/api/v1/namespaces", selector)

    def _names(self, path: str, selector: Manifest) -> frozenset[str]:
        query = f"{path}?labelSelector={quote(','.join(terms(selector)))}"
        if query not in self._known:
            items = self.server.request("GET", query)["items"]
            self._known[query] = frozenset(item["metadata"]["name"] for item in items)
        return self._known[query]


def terms(selector: Manifest) -> Iterator[str]:
    """A label selector as lists are asked with it."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    yield from (f"{key}={value}" for key, value in selector.get("matchLabels", {}).items())
    for one in selector.get("matchExpressions", ()):
        assert one["operator"] == "In"
        yield f"{one['key']} in ({','.join(one['values'])})"


@pytest.fixture(scope="module", params=["perNode", "sidecar"])
def judge(request: pytest.FixtureRequest, apiserver: ApiServer) -> Iterator[Judge]:
    """The policies as the API server keeps them, over pods with the labels that our pods have."""
    world = network_access.world(request.param, f"judged-{request.param.lower()}")
    world.make_namespaces(apiserver)
    world.settle(apiserver, lambda _: {"containers": [PAUSE]})
    items = apiserver.request("GET", POLICIES)["items"]
    kept = [one for one in items if one["metadata"]["namespace"] in world.namespaces]
    yield Judge(world, kept, Asked(apiserver))
    for name in world.namespaces:
        apiserver.request("DELETE", f"/api/v1/namespaces/{name}")


def test_policies_let_in_who_is_meant_and_nobody_else(judge: Judge) -> None:
    """Engines admit their routers, cache nodes the operator, the index its pool, all of them metrics: and no stranger, whatever his labels."""
    wrong = [
        f"{source} {'may not' if meant else 'may'} connect to {target}:{port}"
        for source, target, port, meant in judge.world.questions()
        if judge.may(source, target, port) != meant
    ]
    assert not wrong, "\n".join(wrong)


def test_no_port_but_those_of_the_table_is_open(judge: Judge) -> None:
    """What listens beside them, as a debugger that somebody starts, is reached by nobody."""
    closed = {target for target, _ in judge.world.allowed} - {"chat-router"}
    assert not [(who, target) for target in closed for who in judge.world.pods if judge.may(who, target, 5678)]
