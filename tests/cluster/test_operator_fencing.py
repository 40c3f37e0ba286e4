"""Fencing and rolling on a real API server: pods are written by hand, cache nodes are stand-ins at the wire."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest
from control_stand_in import ControlStandIn
from kube_process import wait_for
from operator_process import DAEMON_SETS, DEPLOYMENTS, POOLS, SECONDS_MAX, Operators, Place, deployment, pool

FENCE_SECONDS_MAX = 2.0
MANAGED = {"app.kubernetes.io/managed-by": "kvcommons-operator"}
TEMPLATE_HASH = "kvcommons.io/template-hash"
RESIZING = "kvcommons.io/resizing"


@pytest.fixture
def nodes() -> Iterator[list[ControlStandIn]]:
    made = [ControlStandIn(f"127.94.70.{number}", f"node-{number}").start() for number in (1, 2)]
    yield made
    for one in made:
        one.stop()


def write_pod(
    place: Place, name: str, labels: dict[str, str], ip: str, node: str, template: str = ""
) -> dict[str, Any]:
    """A running pod, as a kubelet would tell of it."""
    metadata = {"name": name, "labels": {**MANAGED, **labels}, "annotations": {TEMPLATE_HASH: template}}
    spec = {
        "nodeName": node,
        "containers": [{"name": "engine", "image": "none"}],
        "automountServiceAccountToken": False,
    }
    made = place.create("pods", {"metadata": metadata, "spec": spec})
    tell_pod(place, name, ip, restarts=0)
    return made


def tell_pod(place: Place, name: str, ip: str, restarts: int) -> None:
    status = {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [
            {
                "name": "engine", "image": "none", "imageID": "none", "ready": True, "restartCount": restarts,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }
        ],
    }  # fmt: skip
    place.merge("pods", name, {"status": status}, "status")


def node_labels(place: Place) -> dict[str, str]:
    return {
        "app.kubernetes.io/component": "cache-node",
        "kvcommons.io/pool": "pool",
        "kvcommons.io/pool-namespace": place.namespace,
    }


def engine_labels(place: Place) -> dict[str, str]:
    return {
        "app.kubernetes.io/component": "engine",
        "kvcommons.io/deployment": "chat",
        "kvcommons.io/deployment-namespace": place.namespace,
    }


def token(place: Place) -> str:
    data = place.have("secrets", "pool-node-keys")["data"]["control.token"]
    return base64.b64decode(data).decode()


def fenced(nodes: list[ControlStandIn], member: str) -> float | None:
    """When the first of the nodes was asked to fence the member."""
    found = [one.at for node in nodes for one in node.fences() if member in one.body["members"]]
    return min(found) if found else None


def test_the_end_of_a_pod_and_of_a_container_void_what_they_published(
    operators: Operators, place: Place, nodes: list[ControlStandIn]
) -> None:
    """Deletion and restart of an engine, and the end of a cache node, reach a live node within two seconds, with the pool's token."""
    operators.start().ready()
    place.apply(pool(), deployment())
    place.have(DEPLOYMENTS, "chat-engine")
    for node in nodes:
        write_pod(place, f"pool-{node.member}", node_labels(place), node.address, node.member)
    write_pod(place, "chat-one", engine_labels(place), "127.94.70.9", "node-1")
    write_pod(place, "chat-two", engine_labels(place), "127.94.70.9", "node-1")
    wait_for(lambda: all(node.asked for node in nodes), "the operator has seen the nodes", SECONDS_MAX)

    begun = time.monotonic()
    tell_pod(place, "chat-two", "127.94.70.9", restarts=1)
    assert wait_for(lambda: fenced(nodes, "chat-two"), "the restart is fenced", SECONDS_MAX) - begun < FENCE_SECONDS_MAX

    begun = time.monotonic()
    place.apiserver.request("DELETE", place.path("pods", "chat-one") + "?gracePeriodSeconds=0")
    assert wait_for(lambda: fenced(nodes, "chat-one"), "the end is fenced", SECONDS_MAX) - begun < FENCE_SECONDS_MAX

    begun = time.monotonic()
    place.apiserver.request("DELETE", place.path("pods", "pool-node-1") + "?gracePeriodSeconds=0")
    live = nodes[1:]
    assert wait_for(lambda: fenced(live, "node-1"), "the node is fenced", SECONDS_MAX) - begun < FENCE_SECONDS_MAX
    assert {one.token for node in nodes for one in node.asked} == {token(place)}


def test_nodes_roll_one_at_a_time_fenced_before_they_go(
    operators: Operators, place: Place, nodes: list[ControlStandIn]
) -> None:
    """A change of the pool takes one node after another out of the index, then its pod, and waits for what comes back."""
    operators.start().ready()
    place.apply(pool())
    place.have(DAEMON_SETS, "pool-node")
    place.merge(DAEMON_SETS, "pool-node", {"status": {
        "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2,
        "observedGeneration": 1,
    }}, "status")  # fmt: skip
    for node in nodes:
        write_pod(place, f"pool-{node.member}", node_labels(place), node.address, node.member, template="old")

    names = {node.member: f"pool-{node.member}" for node in nodes}

    def gone() -> list[str]:
        return [member for member, name in names.items() if deleting(place, name)]

    first = wait_for(gone, "the first pod is told to go", SECONDS_MAX)
    assert len(first) == 1
    wanted = place.have(DAEMON_SETS, "pool-node")["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH]
    held = [node for node in nodes if node.held]
    assert [node.member for node in held] == first
    assert held[0].fences()[0].body["hold"] is True

    held[0].held = False
    name = names.pop(first[0])
    place.apiserver.request("DELETE", place.path("pods", name) + "?gracePeriodSeconds=0")
    write_pod(place, f"{name}-new", node_labels(place), held[0].address, first[0], template=wanted)
    second = wait_for(gone, "the second pod is told to go", SECONDS_MAX)
    assert len(second) == 1
    assert [node.member for node in nodes if node.held] == second
    assert place.get(POOLS, "pool") is not None


def write_cache_node(place: Place, node: ControlStandIn, template: dict[str, Any]) -> str:
    """A cache node's pod, made from its DaemonSet's template. Returns its uid."""
    container = next(one for one in template["spec"]["containers"] if one["name"] == "cache-node")
    parts = {"name": "cache-node", "image": "none", "resources": container["resources"]}
    metadata = {
        "name": f"pool-{node.member}",
        "labels": template["metadata"]["labels"],
        "annotations": template["metadata"]["annotations"],
    }
    spec = {"nodeName": node.member, "containers": [parts], "automountServiceAccountToken": False}
    return str(place.create("pods", {"metadata": metadata, "spec": spec})["metadata"]["uid"])


def grant(place: Place, node: ControlStandIn) -> dict[str, Any]:
    """Gives the pod's container what its specification asks for, as a kubelet would. Returns the pod."""
    pod = place.have("pods", f"pool-{node.member}")
    resources = pod["spec"]["containers"][0]["resources"]
    told = pod.get("status", {}).get("containerStatuses") or [{}]
    if told[0].get("resources") == resources:
        return pod
    container = {
        "name": "cache-node", "image": "none", "imageID": "none", "ready": True, "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "resources": resources,
    }  # fmt: skip
    status = {
        "phase": "Running", "podIP": node.address, "podIPs": [{"ip": node.address}],
        "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [container],
    }  # fmt: skip
    return place.merge("pods", pod["metadata"]["name"], {"status": status}, "status")


@pytest.mark.parametrize("capacity", ["2Gi", "512Mi"])
def test_another_capacity_is_given_to_nodes_that_live(
    operators: Operators, place: Place, nodes: list[ControlStandIn], capacity: str
) -> None:
    """Memory through pods/resize and the arena through the node's own API, one node after the other, fenced: no pod is deleted, and in the
    end each asks for what the new template says."""
    operators.start().ready()
    place.apply(pool())
    template = place.have(DAEMON_SETS, "pool-node")["spec"]["template"]
    uids = [write_cache_node(place, node, template) for node in nodes]
    for node in nodes:
        grant(place, node)
    place.merge(DAEMON_SETS, "pool-node", {"status": {
        "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2,
        "observedGeneration": 1,
    }}, "status")  # fmt: skip
    place.merge(POOLS, "pool", {"spec": {"tiers": {"memory": {"capacity": capacity}}}})
    wanted = place.until(
        DAEMON_SETS, "pool-node", lambda it: marks(it["spec"]["template"]) != marks(template), "has the capacity"
    )["spec"]["template"]
    container = next(one for one in wanted["spec"]["containers"] if one["name"] == "cache-node")

    def settled() -> list[dict[str, Any]] | None:
        pods = [grant(place, node) for node in nodes]
        assert sum(node.held for node in nodes) <= 1
        done = all(marks(pod) == marks(wanted) and RESIZING not in pod["metadata"]["annotations"] for pod in pods)
        return pods if done else None

    pods = wait_for(settled, "both nodes have the new size", SECONDS_MAX)
    assert [pod["metadata"]["uid"] for pod in pods] == uids
    assert [pod["spec"]["containers"][0]["resources"] for pod in pods] == [container["resources"]] * 2
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert {str(node.arena_bytes) for node in nodes} == {variables["KVCOMMONS_NODE__ARENA_BYTES"]}
    assert all(node.fences()[0].body["hold"] for node in nodes)
    place.reason(POOLS, "pool", "Progressing", "Complete")


def marks(of: dict[str, Any]) -> str:
    """Of a template or a pod: which wish it is made from."""
    return str(of["metadata"]["annotations"][TEMPLATE_HASH])


def deleting(place: Place, name: str) -> bool:
    found = place.get("pods", name)
    return found is None or "deletionTimestamp" in found["metadata"]
