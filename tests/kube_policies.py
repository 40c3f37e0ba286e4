"""Enforces a test cluster's NetworkPolicies for ingress, by iptables in the nodes' own namespaces.

What the policies and pods are at a moment is what holds from then on: `enforce` is called again after a change.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kube_cluster import Cluster
from kube_node import Node

ENTRY = "TEST-POLICIES"
ANYWHERE = "0.0.0.0/0"
Object = Mapping[str, Any]


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes an object with these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(term, labels) for term in selector.get("matchExpressions", ()))


def _holds(term: Object, labels: Mapping[str, str]) -> bool:
    has, value = term["key"] in labels, labels.get(term["key"])
    outcomes = {
        "In": has and value in term.get("values", ()),
        "NotIn": not has or value not in term.get("values", ()),
        "Exists": has,
        "DoesNotExist": not has,
    }
    return outcomes[term["operator"]]


def labels_of(item: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = item["metadata"].get("labels", {})
    return labels


class Snapshot:
    """Pods, namespaces and policies of a moment."""

    def __init__(self, cluster: Cluster) -> None:
        pods = cluster.request("GET", "/api/v1/pods")["items"]
        self.pods = [pod for pod in pods if pod["status"].get("podIP") and not pod["spec"].get("hostNetwork")]
        namespaces = cluster.request("GET", "/api/v1/namespaces")["items"]
        self.namespaces = {item["metadata"]["name"]: labels_of(item) for item in namespaces}
        self.policies = cluster.request("GET", "/apis/networking.k8s.io/v1/networkpolicies")["items"]

    def policies_of(self, pod: Object) -> list[Object]:
        """Those that limit who connects to a pod."""
        mine = [item for item in self.policies if item["metadata"]["namespace"] == pod["metadata"]["namespace"]]
        return [
            item
            for item in mine
            if "Ingress" in item["spec"].get("policyTypes", ["Ingress"])
            and selects(item["spec"]["podSelector"], labels_of(pod))
        ]

    def sources(self, peer: Object, namespace: str) -> Iterator[str]:
        """Addresses of one peer of a policy in a namespace."""
        if "ipBlock" in peer:
            assert not peer["ipBlock"].get("except"), "not needed so far"
            yield peer["ipBlock"]["cidr"]
            return
        for pod in self.pods:
            home = pod["metadata"]["namespace"]
            selector = peer.get("namespaceSelector")
            near = home == namespace if selector is None else selects(selector, self.namespaces[home])
            if near and selects(peer.get("podSelector", {}), labels_of(pod)):
                yield f"{pod['status']['podIP']}/32"

    def allowed(self, policy: Object, pod: Object) -> Iterator[tuple[str, str, str]]:
        """(source, protocol, port) that a policy lets in; an empty protocol is all of them."""
        for rule in policy["spec"].get("ingress", ()):
            peers = rule.get("from")
            namespace = policy["metadata"]["namespace"]
            found = [ANYWHERE] if not peers else [one for peer in peers for one in self.sources(peer, namespace)]
            for source in found:
                for port in rule.get("ports") or [None]:
                    yield (source, *_port(port, pod))


def _port(port: Object | None, pod: Object) -> tuple[str, str]:
    if port is None:
        return "", ""
    number = port.get("port", "")
    if isinstance(number, str) and number:
        containers = pod["spec"]["containers"]
        number = next(one["containerPort"] for each in containers for one in each["ports"] if one["name"] == number)
    return port.get("protocol", "TCP").lower(), f"{number}:{port['endPort']}" if "endPort" in port else str(number)


def rules_of(snapshot: Snapshot, node: Node) -> Iterator[str]:
    """Input of iptables-restore for the pods of one node."""
    limited = [pod for pod in snapshot.pods if pod["spec"]["nodeName"] == node.name and snapshot.policies_of(pod)]
    chains = {pod["metadata"]["uid"]: _chain(pod) for pod in limited}
    yield "*filter"
    yield from (f":{chain} - [0:0]" for chain in (ENTRY, *chains.values()))
    yield f"-A {ENTRY} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
    for pod in limited:
        chain = chains[pod["metadata"]["uid"]]
        yield f"-A {ENTRY} -d {pod['status']['podIP']}/32 -j {chain}"
        for policy in snapshot.policies_of(pod):
            for source, protocol, port in snapshot.allowed(policy, pod):
                what = f" -p {protocol}" + (f" --dport {port}" if port else "") if protocol else ""
                yield f"-A {chain} -s {source}{what} -j RETURN"
        yield f"-A {chain} -j REJECT --reject-with icmp-admin-prohibited"
    yield "COMMIT"


def _chain(pod: Object) -> str:
    return f"TEST-{hashlib.sha256(pod['metadata']['uid'].encode()).hexdigest()[:16]}"


def _restore(node: Node, lines: Iterable[str]) -> None:
    text = "\n".join(lines) + "\n"
    command = node.inside("iptables-restore", "--noflush", "-w", "10")
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{node.name}: {done.stderr}\n{text}"


def enforce(cluster: Cluster) -> None:
    """From now on who may not connect to a pod is refused, by any way but its own node's."""
    snapshot = Snapshot(cluster)
    for node in cluster.nodes:
        _restore(node, rules_of(snapshot, node))
        present = subprocess.run(
            node.inside("iptables", "-C", "FORWARD", "-j", ENTRY), capture_output=True, check=False
        )
        if present.returncode != 0:
            node.run("iptables", "-w", "10", "-I", "FORWARD", "1", "-j", ENTRY)


def relax(cluster: Cluster) -> None:
    """Everybody may connect again."""
    for node in cluster.nodes:
        _restore(node, ["*filter", f":{ENTRY} - [0:0]", "COMMIT"])
