"""The DNS of a test cluster: CoreDNS with what Services need."""

from __future__ import annotations

import socket
import struct
from typing import Any

COREFILE = """.:5300 {
    errors
    health :8080 {
        lameduck 0s
    }
    ready :8181
    kubernetes cluster.local in-addr.arpa {
        pods insecure
        ttl 1
    }
}
"""
NAME = "coredns"
LABELS = {"app": NAME}
PLACE = {"name": NAME, "namespace": "kube-system"}


def rules() -> list[dict[str, Any]]:
    """Its account, and what it may watch."""
    watched = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": PLACE},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": watched},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", **PLACE}],
        },
    ]


def workload(image: str) -> dict[str, Any]:
    container = {
        "name": NAME,
        "image": image,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
    }
    pod = {
        "serviceAccountName": NAME,
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": NAME}}],
    }
    template = {"metadata": {"labels": LABELS}, "spec": pod}
    spec = {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": PLACE, "spec": spec}


def manifests(image: str, address: str) -> list[dict[str, Any]]:
    """All of it; `address` is the one that kubelets tell pods to ask."""
    ports = [{"name": kind.lower(), "protocol": kind, "port": 53, "targetPort": 5300} for kind in ("UDP", "TCP")]
    return [
        *rules(),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": PLACE, "data": {"Corefile": COREFILE}},
        workload(image),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**PLACE, "name": "kube-dns"},
            "spec": {"clusterIP": address, "selector": LABELS, "ports": ports},
        },
    ]


def ask(server: str, name: str) -> str:
    """The first IPv4 address that a DNS server has for a name."""
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    query = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + question + struct.pack("!2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(5.0)
        channel.sendto(query, (server, 53))
        answer = channel.recv(512)
    assert struct.unpack("!H", answer[6:8])[0] > 0, f"{server} knows no {name}"
    return socket.inet_ntoa(answer[-4:])
