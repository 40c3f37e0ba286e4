"""Random resources that the API server takes: the operator brings every one to rest, and leaves nothing of it when it goes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any, Final

import pytest
from crd_case import Spec, body
from crd_random import Maker
from kube_process import NotReady, Process, wait_for
from kvcommons_operator.api import InferenceDeployment, KVCachePool, Resource, parse, refused
from operator_process import DEPLOYMENTS_OWN, POOLS, Operator, Operators, Place, condition

# Others, and more of them: KVCOMMONS_SEED=7 KVCOMMONS_TIMES=10 pytest tests/cluster/test_operator_random.py
SEED = int(os.environ.get("KVCOMMONS_SEED", "20260"))
TIMES = int(os.environ.get("KVCOMMONS_TIMES", "1"))
DRAWS: Final = 3
POOLS_AT_ONCE: Final = 4
DEPLOYMENTS_AT_ONCE: Final = 8
COPIES_MAX: Final = 3
"""Of engines and routers: a thousand take a controller minutes to make."""
SETTLE_SECONDS_MAX: Final = 90.0
LOOKS_WITHOUT_REQUEST: Final = 12
MANAGED: Final = "?labelSelector=app.kubernetes.io/managed-by=kvcommons-operator"
CHILDREN: Final = (
    "services",
    "secrets",
    "configmaps",
    "serviceaccounts",
    "apps/v1/deployments",
    "apps/v1/daemonsets",
    "apps/v1/statefulsets",
    "policy/v1/poddisruptionbudgets",
    "networking.k8s.io/v1/networkpolicies",
    "rbac.authorization.k8s.io/v1/roles",
    "rbac.authorization.k8s.io/v1/rolebindings",
    "autoscaling/v2/horizontalpodautoscalers",
    "kvcommons.io/v1alpha1/inferenceroles",
)

Manifest = dict[str, Any]


def fewer(part: Any) -> Any:
    """The same with no more copies of a pod than that."""
    if isinstance(part, list):
        return [fewer(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {
        name: min(value, COPIES_MAX) if name in ("replicas", "minReplicas") and isinstance(value, int) else fewer(value)
        for name, value in part.items()
    }


def drawn(kind: type[Resource], seed: int) -> Spec:
    """A valid spec; of what this version does not build yet there is some, not much."""
    specs = (Maker(seed * DRAWS + draw).valid(kind) for draw in range(DRAWS))
    found = next(specs)
    while refused(parse(kind, body(kind, "x", found, "x")).spec) and (another := next(specs, None)):  # type: ignore[attr-defined]
        found = another
    return dict(fewer(found))


def pools(seed: int) -> Iterator[Manifest]:
    """So many valid pools."""
    for number in range(POOLS_AT_ONCE):
        spec = drawn(KVCachePool, seed * 100 + number)
        yield body(KVCachePool, f"pool-{number}", spec)


def deployments(seed: int) -> Iterator[Manifest]:
    """So many valid deployments; most use one of the pools, the others what came out."""
    for number in range(DEPLOYMENTS_AT_ONCE):
        spec: Spec = drawn(InferenceDeployment, seed * 100 + number)
        choice = random.Random(seed * 100 + number).randrange(POOLS_AT_ONCE + 2)
        if choice < POOLS_AT_ONCE:
            spec["poolRef"] = {"name": f"pool-{choice}"}
        yield body(InferenceDeployment, f"chat-{number}", spec)


def unsettled(item: Manifest) -> str:
    """What is still missing of a resource that the operator has dealt with; empty where nothing is."""
    status = item.get("status") or {}
    told = {one["type"]: one for one in status.get("conditions") or ()}
    if status.get("observedGeneration") != item["metadata"]["generation"] or "Accepted" not in told:
        return f"{item['kind']} {item['metadata']['name']} is not looked at: {status}"
    return ""


def faults(item: Manifest) -> list[str]:
    """What must not be said of a resource that the API server has taken: that it is invalid after all, or its children are; or
    that a model is served where no pod runs."""
    told = (item.get("status") or {}).get("conditions") or ()
    wrong = [one for one in told if one["reason"] in ("ApplyRefused", "InvalidSpec")]
    if item["kind"] == "InferenceDeployment" and condition(item, "Ready").get("status") == "True":
        wrong.append(condition(item, "Ready"))
    return [
        f"{item['kind']} {item['metadata']['name']}: {one['type']}={one['status']}: {one['reason']}: {one['message']}\n{item['spec']}"
        for one in wrong
    ]


def requests(operator: Operator) -> dict[str, float]:
    """What it has asked so far, but for its Lease, by kind and verb."""
    samples = operator.metrics().items()
    counts = {name: count for name, count in samples if name.startswith("kvcommons_operator_api_requests_total{")}
    return {name: count for name, count in counts.items() if 'kind="Lease"' not in name}


def grown(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What was asked meanwhile."""
    return {name: count - before.get(name, 0) for name, count in now.items() if count != before.get(name, 0)}


def restless(operator: Operator) -> dict[str, float]:
    """What the operator goes on asking; empty as soon as so many looks have seen no request."""
    seen, looks = requests(operator), 0
    asked: dict[str, float] = {}

    def quiet() -> bool:
        nonlocal seen, looks, asked
        now = requests(operator)
        more = grown(seen, now)
        looks = 0 if more else looks + 1
        seen, asked = now, more or asked
        return looks > LOOKS_WITHOUT_REQUEST

    try:
        wait_for(quiet, "the operator asks nothing more", SETTLE_SECONDS_MAX, every=0.25)
    except NotReady:
        return asked
    return {}


def left(place: Place) -> list[str]:
    """Children that are still there."""
    return [
        f"{kind} {item['metadata']['name']}"
        for kind in CHILDREN
        for item in place.apiserver.request("GET", place.path(kind) + MANAGED)["items"]
    ]


@pytest.mark.parametrize("seed", range(SEED, SEED + TIMES))
def test_whatever_is_stored_comes_to_rest_and_goes(
    operators: Operators, place: Place, controllers: Process, seed: int
) -> None:
    """Random pools and deployments at once: each is judged, none is found invalid afterwards, the operator falls silent, and
    deletion leaves no child."""
    operator = operators.start(f"seed-{seed}", lease_seconds=30).ready()
    wanted = [(POOLS, one) for one in pools(seed)] + [(DEPLOYMENTS_OWN, one) for one in deployments(seed)]
    for kind, manifest in wanted:
        place.create(kind, manifest)

    def resources() -> list[Manifest]:
        return [
            {**item, "kind": manifest["kind"]}
            for kind, manifest in wanted
            if (item := place.get(kind, manifest["metadata"]["name"])) is not None
        ]

    operator.until(lambda: not any(map(unsettled, resources())), "every resource is judged", SETTLE_SECONDS_MAX)
    asked, found = restless(operator), resources()
    assert [unsettled(item) for item in found if unsettled(item)] == []
    wrong = [fault for item in found for fault in faults(item)]
    assert not wrong, "\n".join(wrong)
    assert not asked, f"it goes on asking: {asked}"
    for kind in (DEPLOYMENTS_OWN, POOLS):
        place.apiserver.request("DELETE", place.path(kind))
    operator.until(lambda: resources() == [], "every resource is gone", SETTLE_SECONDS_MAX)
    wait_for(lambda: not left(place), f"children are gone; left: {left(place)}", SETTLE_SECONDS_MAX)
    assert "defect" not in operator.log, operator.log[-5_000:]
