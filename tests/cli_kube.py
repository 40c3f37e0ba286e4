"""An API server at the wire for the command's tests: lists by pages, single objects, access reviews, and pods behind its proxy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Manifest = dict[str, Any]
BASE = "/apis/kvcommons.io/v1alpha1"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TOKEN = "token-of-the-test"
PAGE_ITEMS = 2


def condition(kind: str, status: str = "True", reason: str = "Fine", message: str = "") -> Manifest:
    return {"type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": 1}


def pool(name: str, *conditions: Manifest, placement: str = "sidecar", **status: Any) -> Manifest:
    return {
        "metadata": {
            "namespace": "kv",
            "name": name,
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"placement": placement},
        "status": {"conditions": list(conditions or [condition("Accepted"), condition("Ready")]), **status},
    }


def deployment(name: str, *conditions: Manifest, pool_name: str = "shared", **status: Any) -> Manifest:
    return {
        "metadata": {
            "namespace": "chat",
            "name": name,
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"model": {"name": "smollm2"}, "poolRef": {"namespace": "kv", "name": pool_name}},
        "status": {"conditions": list(conditions or [condition("Ready")]), **status},
    }


def pod(name: str, component: str, namespace: str = "kv", **containers: Manifest) -> Manifest:
    """A running pod of ours. :param containers: states of its containers by name."""
    statuses = [
        {"name": container.replace("_", "-"), "ready": True, "restartCount": 0, **state}
        for container, state in (containers or {component.replace("-", "_"): {}}).items()
    ]
    ready = all(one["ready"] for one in statuses)
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/part-of": "kvcommons",
                "app.kubernetes.io/component": component,
                "kvcommons.io/pool": "shared",
                "kvcommons.io/pool-namespace": "kv",
                "kvcommons.io/deployment": "chat",
                "kvcommons.io/deployment-namespace": "chat",
            },
        },
        "spec": {"nodeName": "machine-1", "serviceAccountName": "default"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": statuses,
        },
    }


def definition(plural: str, version: str = "v1alpha1") -> Manifest:
    return {
        "metadata": {"name": f"{plural}.kvcommons.io"},
        "spec": {"versions": [{"name": version, "served": True}]},
        "status": {"conditions": [{"type": "Established", "status": "True"}]},
    }


@dataclass
class FakeCluster:
    """What the server has; a test fills it in."""

    objects: dict[str, Manifest] = field(default_factory=dict)
    """By path."""
    lists: dict[str, list[Manifest]] = field(default_factory=dict)
    """By path; a list that is not here is not found."""
    proxied: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    """(pod, path) -> status and body."""
    denied: set[str] = field(default_factory=set)
    """Resources that a review does not allow: `pods`, `pods/proxy`, ..."""
    refused: dict[str, int] = field(default_factory=dict)
    """Path -> status that it is answered with instead."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def node(self, name: str, *, index: str = "connected", used: int = 512, hits: int = 30, held: bool = False) -> None:
        """A cache node answers behind the proxy."""
        detail = {"state": index, "detail": f"redis://index:6379 {index}", "held": held}
        ready = {"ready": True, "reason": "", "adopted": False, "index": detail}
        metrics = (
            "# HELP kvcommons_node_capacity_bytes Size\n"
            "kvcommons_node_capacity_bytes 1024.0\n"
            f'kvcommons_node_arena_bytes{{use="used"}} {used}.0\n'
            "kvcommons_node_chunks 7.0\nkvcommons_node_sessions 4.0\nkvcommons_node_engines 2.0\n"
            f'kvcommons_node_lookup_chunks_total 40.0\nkvcommons_node_hit_chunks_total{{tier="memory"}} {hits}.0\n'
        )
        self.proxied[(name, "/readyz")] = (200, json.dumps(ready).encode())
        self.proxied[(name, "/metrics")] = (200, metrics.encode())

    def answer(self, method: str, target: str, body: Manifest | None) -> tuple[int, bytes]:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append((method, parts.path))
        if parts.path in self.refused:
            status = self.refused[parts.path]
            return status, json.dumps({"kind": "Status", "message": "scripted", "code": status}).encode()
        if "/proxy/" in parts.path:
            name = parts.path.split("/")[6].partition(":")[0]
            return self.proxied.get((name, "/" + parts.path.partition("/proxy/")[2]), (503, b"no endpoints"))
        if body is not None:
            return 201, json.dumps({"status": {"allowed": self._allowed(body["spec"])}}).encode()
        found = self.objects.get(parts.path) or self._page(parts.path, query)
        if found is None:
            return 404, json.dumps({"kind": "Status", "message": "the server could not find it"}).encode()
        return 200, json.dumps(found).encode()

    def _allowed(self, spec: Manifest) -> bool:
        wanted = spec["resourceAttributes"]
        resource = wanted["resource"] + (f"/{wanted['subresource']}" if wanted.get("subresource") else "")
        return f"{wanted['verb']} {resource}" not in self.denied

    def _page(self, path: str, query: dict[str, str]) -> Manifest | None:
        if path not in self.lists:
            return None
        selector = dict([query["labelSelector"].split("=")]) if "labelSelector" in query else {}
        wanted = [one for one in self.lists[path] if selector.items() <= (one["metadata"].get("labels") or {}).items()]
        begin = int(query.get("continue", "0"))
        following = begin + PAGE_ITEMS
        more = {"continue": str(following)} if following < len(wanted) else {}
        return {"metadata": more, "items": wanted[begin:following]}


@contextmanager
def serving(cluster: FakeCluster) -> Iterator[FakeCluster]:
    """A server on loopback until the end of the block; who has no token is not let in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Manifest | None) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, content = 401, b'{"kind": "Status", "message": "Unauthorized"}'
            else:
                status, content = cluster.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            """Nothing: the test's output is its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield cluster
        finally:
            server.shutdown()
            thread.join()


def kubeconfig(folder: Path, url: str, token: str = TOKEN) -> Path:
    """A file with one cluster, one user and one context."""
    file = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    file.write_text(yaml.safe_dump(document))
    return file


def healthy() -> FakeCluster:
    """A cluster in which all is well: a pool of two nodes, a deployment of two replicas, an operator that leads."""
    found = FakeCluster()
    found.lists[f"{BASE}/kvcachepools"] = [
        pool(
            "shared",
            condition("Accepted"),
            condition("Ready"),
            condition("IndexConsistent"),
            placement="perNode",
            nodes={"desired": 3, "ready": 3},
            references=1,
            index={"replicas": 1, "readyReplicas": 1},
        )
    ]
    found.lists[f"{BASE}/inferencedeployments"] = [
        deployment("chat", replicas=2, readyReplicas=2, connectedReplicas=2, url="http://chat-router.kv:8000/v1")
    ]
    nodes = [pod(f"node-{number}", "cache-node") for number in range(3)]
    engines = [pod(f"chat-{number}", "engine", "chat") for number in range(2)]
    operator = pod("operator-0", "operator", "kvcommons-system")
    operator["metadata"]["labels"]["app.kubernetes.io/name"] = "kvcommons-operator"
    found.lists["/api/v1/pods"] = [*nodes, *engines, operator]
    for one in nodes:
        found.node(one["metadata"]["name"])
    found.objects["/version"] = {"major": "1", "minor": "31+", "gitVersion": "v1.31.2"}
    for plural in ("kvcachepools", "inferencedeployments", "inferenceroles"):
        found.objects[f"{CRDS}/{plural}.kvcommons.io"] = definition(plural)
    lease = "/apis/coordination.k8s.io/v1/namespaces/kvcommons-system/leases/kvcommons-operator"
    found.objects[lease] = {
        "spec": {"holderIdentity": "operator-0", "renewTime": "2999-01-01T00:00:00.000000Z", "leaseDurationSeconds": 15}
    }
    for name in ("kv", "chat"):
        found.objects[f"/api/v1/namespaces/{name}"] = {"metadata": {"name": name, "labels": {}}}
    return found
