"""What the simulated cluster itself takes: the same objects that an operator made, created by a bare loop, until as much is ready.

No operator can be faster on these cores than this: the API server, the controllers, the scheduler and kwok have the same work to do, and
nobody asks, decides, or says how it goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kube_client import Client
from kube_process import wait_for

from bench.operator_world import Document, World, say

SELECTOR = "app.kubernetes.io%2Fmanaged-by%3Dkvcommons-operator"
# In the order in which they are created: pods begin with what they refer to.
COLLECTIONS = (
    ("v1", "Secret", "secrets"),
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("v1", "Service", "services"),
    ("rbac.authorization.k8s.io/v1", "Role", "roles"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("apps/v1", "DaemonSet", "daemonsets"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("apps/v1", "Deployment", "deployments"),
)
PAGE_ITEMS_MAX = 500
FLOOR_SECONDS_MAX = 420.0
EVERY_SECONDS = 0.5
SERVER_METADATA = (
    "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "ownerReferences", "finalizers",
)  # fmt: skip


def made_by_operator(world: World) -> list[Document]:
    """Every object that it made, as somebody would write it."""
    return [
        bare({"apiVersion": version, "kind": kind, **item})
        for version, kind, plural in COLLECTIONS
        for item in items(world, version, plural, SELECTOR)
    ]


def bare(item: Document) -> Document:
    """Without what the server says of it."""
    metadata = {name: value for name, value in item["metadata"].items() if name not in SERVER_METADATA}
    kept = {name: value for name, value in item.items() if name not in ("status", "metadata")}
    if item["kind"] == "Service":
        kept["spec"] = {name: value for name, value in item["spec"].items() if name not in ("clusterIP", "clusterIPs")}
    return {**kept, "metadata": metadata}


def path(version: str, plural: str, namespace: str = "") -> str:
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def items(world: World, version: str, plural: str, selector: str) -> Iterator[Document]:
    following = ""
    while True:
        query = f"?labelSelector={selector}&limit={PAGE_ITEMS_MAX}" + (f"&continue={following}" if following else "")
        page = world.client.request("GET", path(version, plural) + query)
        yield from page["items"]
        following = page["metadata"].get("continue") or ""
        if not following:
            return


def floor_seconds(world: World, objects: list[Document]) -> float:
    """From the first object until every workload has all its pods ready."""
    plurals = {(version, kind): plural for version, kind, plural in COLLECTIONS}

    def create(server: Any, item: Document) -> None:
        plural = plurals[(item["apiVersion"], item["kind"])]
        server.request("POST", path(item["apiVersion"], plural, item["metadata"]["namespace"]), item)

    begun, before = time.monotonic(), world.cpu_seconds()
    world.each(create, objects)
    say(f"floor: {len(objects)} objects created in {time.monotonic() - begun:.1f} s")
    waiting = Waiting(world.client)
    for item in objects:
        if (holds := DONE.get(item["kind"])) is not None:
            metadata = item["metadata"]
            place = path(item["apiVersion"], plurals[(item["apiVersion"], item["kind"])], metadata["namespace"])
            waiting.add(f"{place}/{metadata['name']}", holds)
    wait_for(waiting.done, "everything is ready without an operator", FLOOR_SECONDS_MAX, every=EVERY_SECONDS)
    seconds = time.monotonic() - begun
    spent = {name: after - before[name] for name, after in world.cpu_seconds().items()}
    say(
        f"floor: ready in {seconds:.1f} s; CPU seconds: {', '.join(f'{name} {one:.1f}' for name, one in spent.items())}"
    )
    return seconds


class Waiting:
    """Asks for one object after the other, each until it is as it should be: lists of hundreds would be most of what the API server has
    to answer. `add`, then ask `done` again and again."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._left: deque[tuple[str, Callable[[Document], bool]]] = deque()
        self.at: Document = {}
        """What it waits for, as it was last."""

    def add(self, path: str, holds: Callable[[Document], bool]) -> None:
        self._left.append((path, holds))

    def __len__(self) -> int:
        return len(self._left)

    def done(self) -> bool:
        while self._left:
            path, holds = self._left[0]
            self.at = self._client.request("GET", path)
            if not holds(self.at):
                return False
            self._left.popleft()
        return True


def _daemon_set_done(item: Document) -> bool:
    status = item.get("status") or {}
    wanted = status.get("desiredNumberScheduled", 0)
    return bool(wanted and status.get("numberReady") == status.get("updatedNumberScheduled") == wanted)


def _replicas_done(item: Document) -> bool:
    status = item.get("status") or {}
    return bool(status.get("readyReplicas", 0) == item["spec"]["replicas"])


DONE: Mapping[str, Callable[[Document], bool]] = {
    "DaemonSet": _daemon_set_done, "StatefulSet": _replicas_done, "Deployment": _replicas_done,
}  # fmt: skip
