"""An operator among others on a real API server: one that is told to wait (429), and one whose resources others write to (409)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kube_apiserver import ApiServer
from kube_client import ApiError, Client
from operator_process import DEPLOYMENTS, DEPLOYMENTS_OWN, POOLS, Operators, Place, deployment, pool

FLOWS = "/apis/flowcontrol.apiserver.k8s.io/v1"
LEVEL, SCHEMA, ACCOUNT = "test-one-seat", "test-throttled", "operator"
THREAD_SECONDS_MAX = 60.0
CROWD = 4
LARGE = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def account(own_apis: ApiServer, place: Place) -> Iterator[Client]:
    """Whom the API server may throttle: an administrator of no group that is exempt."""
    place.create("serviceaccounts", {"metadata": {"name": ACCOUNT}})
    name = f"{place.namespace}-{ACCOUNT}"
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": place.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    own_apis.request("POST", path, {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]})
    yield own_apis.as_account(place.namespace, ACCOUNT)
    own_apis.request("DELETE", f"{path}/{name}")


def throttle(server: ApiServer, namespace: str) -> None:
    """From now on the account has one seat, and no queue: a request beside another of its is answered 429."""
    limited = {
        "nominalConcurrencyShares": 0,
        "lendablePercent": 0,
        "borrowingLimitPercent": 0,
        "limitResponse": {"type": "Reject"},
    }
    user = {"name": f"system:serviceaccount:{namespace}:{ACCOUNT}"}
    asked = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"]}
    spec = {
        "priorityLevelConfiguration": {"name": LEVEL},
        "matchingPrecedence": 50,
        "rules": [{"subjects": [{"kind": "User", "user": user}], "resourceRules": [asked]}],
    }
    level = {"metadata": {"name": LEVEL}, "spec": {"type": "Limited", "limited": limited}}
    server.request("POST", f"{FLOWS}/prioritylevelconfigurations", level)
    server.request("POST", f"{FLOWS}/flowschemas", {"metadata": {"name": SCHEMA}, "spec": spec})


def relax(server: ApiServer) -> None:
    server.request("DELETE", f"{FLOWS}/flowschemas/{SCHEMA}")
    server.request("DELETE", f"{FLOWS}/prioritylevelconfigurations/{LEVEL}")


@contextmanager
def crowded(account: Client) -> Iterator[None]:
    """Others ask with the same account all the while, and for much: the seat is taken most of the time."""
    end = threading.Event()

    def ask() -> None:
        while not end.is_set():
            try:
                account.request("GET", LARGE)
            except ApiError as error:
                if error.status != 429:
                    raise

    threads = [threading.Thread(target=ask) for _ in range(CROWD)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join(THREAD_SECONDS_MAX)


def test_an_operator_that_is_throttled_makes_what_is_asked_for(
    account: Client, operators: Operators, place: Place, own_apis: ApiServer
) -> None:
    """Many of its requests are answered 429: it waits, asks again, ends for nothing, and all children are there in the end."""
    operator = operators.start(kubeconfig=account.kubeconfig, lease_seconds=60).ready()
    throttle(own_apis, place.namespace)
    try:
        with crowded(account):
            place.apply(pool(), deployment())
            operator.until(lambda: refusals(operator.metrics(), "429") > 2, "it has been told to wait")
    finally:
        relax(own_apis)
    place.have(DEPLOYMENTS, "chat-engine")
    place.have(DEPLOYMENTS, "chat-router")
    place.reason(DEPLOYMENTS_OWN, "chat", "Accepted", "Accepted")
    assert operator.process.alive
    assert "defect" not in operator.log


def refusals(samples: dict[str, float], status: str) -> float:
    wanted = f'status="{status}"'
    return sum(count for name, count in samples.items() if "api_requests_total{" in name and wanted in name)


def test_others_who_write_to_the_same_resources_all_the_while_hold_up_nothing(
    operators: Operators, place: Place
) -> None:
    """Annotations that change many times a second make conflicts of what the operator writes by version: it reads anew, makes all
    children, and lets the resources go in order."""
    operator = operators.start(lease_seconds=60).ready()
    end = threading.Event()

    def write(kind: str, name: str) -> None:
        number = 0
        while not end.is_set():
            number += 1
            try:
                place.merge(kind, name, {"metadata": {"annotations": {"example.com/seen": str(number)}}})
            except ApiError as error:
                if error.status != 404:
                    raise
            end.wait(0.002)

    threads = [
        threading.Thread(target=write, args=(kind, name)) for kind, name in ((POOLS, "pool"), (DEPLOYMENTS_OWN, "chat"))
    ]
    for thread in threads:
        thread.start()
    try:
        place.apply(pool(), deployment())
        place.have(DEPLOYMENTS, "chat-engine")
        place.until(POOLS, "pool", lambda it: it["metadata"].get("finalizers"), "is held while it is used")
        place.delete(DEPLOYMENTS_OWN, "chat")
        place.gone(DEPLOYMENTS_OWN, "chat")
        place.until(POOLS, "pool", lambda it: not it["metadata"].get("finalizers"), "is held no more")
    finally:
        end.set()
        for thread in threads:
            thread.join(THREAD_SECONDS_MAX)
    assert operator.process.alive
    assert "defect" not in operator.log
