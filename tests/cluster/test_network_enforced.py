"""A denied connection is denied: the operator's NetworkPolicies enforced on real nodes, over pods that are ours by their labels alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any

import kube_policies
import network_access
import pod_network
import pytest
from kube_cluster import Cluster, condition
from kube_node import PAUSE_IMAGE
from kube_process import Process, wait_for
from kvcommons_operator import names
from network_access import OUTSIDE, World

READY_SECONDS_MAX = 180.0
ENGINE = "chat-engine"
PROBE = {"tcpSocket": {"port": names.ENGINE_PORT}, "periodSeconds": 1, "failureThreshold": 1}


@dataclass
class Settled:
    """A world whose pods run, and listen on the ports that the table has for them."""

    cluster: Cluster
    world: World
    listeners: dict[str, Process] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)

    def running(self) -> dict[str, dict[str, Any]]:
        """Pods by name."""
        spaces = self.world.namespaces
        return {pod["metadata"]["name"]: pod for space in spaces for pod in self.cluster.pods(space)}

    def pid(self, name: str) -> int:
        if name not in self.pids:
            self.pids[name] = self.cluster.container_pid(self.world.pods[name].namespace, name, "main")
        return self.pids[name]

    def outcomes(self) -> dict[tuple[str, str, int], str]:
        """What became of every connection that the table speaks of."""
        running, asked = self.running(), list(self.world.questions())

        def of(source: str) -> dict[tuple[str, str, int], str]:
            mine = [(target, port) for who, target, port, _ in asked if who == source]
            targets = [f"{running[target]['status']['podIP']}:{port}" for target, port in mine]
            found = pod_network.attempts(None if source == OUTSIDE else self.pid(source), targets)
            return {(source, *to): one for to, one in zip(mine, found, strict=True)}

        with ThreadPoolExecutor(4) as pool:
            return {key: one for each in pool.map(of, (*self.world.pods, OUTSIDE)) for key, one in each.items()}

    def probes_seen(self, name: str) -> int:
        """How often its own node's kubelet has connected."""
        gateway = self.cluster.node_of(self.running()[name]).pods.replace(".0/24", ".1")
        return self.listeners[name].log.read_text().count(f"{gateway} {names.ENGINE_PORT}\n")


def spec(node: str, name: str) -> dict[str, Any]:
    """Of a pod that does nothing; engines are probed as real ones are."""
    container: dict[str, Any] = {"name": "main", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}
    if name == ENGINE:
        container["readinessProbe"] = PROBE
    return {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}


@pytest.fixture(scope="module", params=["perNode", "sidecar"])
def settled(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Settled]:
    """On both nodes, in turn; to each port of the table anybody could connect if nobody denied it."""
    world = network_access.world(request.param, f"tried-{request.param.lower()}")
    nodes = cycle(node.name for node in cluster.nodes)
    world.make_namespaces(cluster)
    wait_for(lambda: all(has_account(cluster, name) for name in world.namespaces), "accounts for pods", 60.0)
    world.settle(cluster, lambda name: spec(next(nodes), name))
    found = Settled(cluster, world)
    wait_for(lambda: all(started(pod) for pod in found.running().values()), "pods run", READY_SECONDS_MAX, every=0.5)
    try:
        for name in {target for target, _ in world.allowed}:
            ports = [port for target, port in world.allowed if target == name]
            listen = pod_network.command(found.pid(name), "listen", *ports)
            found.listeners[name] = Process(f"listener-{world.pods[name].namespace}-{name}", listen, cluster.folder)
            found.listeners[name].start()
        for listener in found.listeners.values():
            listener.wait_until(partial(listens, listener), "listening", READY_SECONDS_MAX)
        wait_for(lambda: is_ready(found, ENGINE), "the engine's probe succeeds", READY_SECONDS_MAX, every=0.5)
        yield found
    finally:
        for listener in found.listeners.values():
            listener.stop()
        kube_policies.relax(cluster)
        cluster.kubectl("delete", "namespace", *world.namespaces, "--wait=false")


def listens(listener: Process) -> bool:
    return pod_network.LISTENING in listener.log.read_text()


def has_account(cluster: Cluster, namespace: str) -> bool:
    """The one that every pod is given; a controller makes it."""
    return cluster.exists(f"/api/v1/namespaces/{namespace}/serviceaccounts/default")


def started(pod: dict[str, Any]) -> bool:
    return any(one["state"].get("running") for one in pod["status"].get("containerStatuses", ()))


def is_ready(settled: Settled, name: str) -> bool:
    return condition(settled.running()[name], "Ready") == "True"


def test_denied_connections_are_denied_and_the_others_are_not(settled: Settled) -> None:
    """Exactly those succeed that are meant to, within one node and between two; all the others are refused by the firewall."""
    kube_policies.enforce(settled.cluster)
    meant = {(who, whom, port): may for who, whom, port, may in settled.world.questions()}
    outcomes = settled.outcomes()
    wrong = {key: one for key, one in outcomes.items() if one != ("open" if meant[key] else pod_network.PROHIBITED)}
    assert outcomes.keys() == meant.keys()
    assert not wrong


def test_kubelets_probes_pass(settled: Settled) -> None:
    """A node's own kubelet reaches its engine although no policy names it: the pod stays ready."""
    kube_policies.enforce(settled.cluster)
    seen = settled.probes_seen(ENGINE)
    wait_for(lambda: settled.probes_seen(ENGINE) >= seen + 3, "three more probes", 30.0)
    assert is_ready(settled, ENGINE)
