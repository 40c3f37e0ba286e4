"""What exists of ours, by owner: children as compressed JSON with a digest of what others could change, pods as plain data."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from kvcommons_operator.kube.kinds import AUTOSCALER, DISRUPTION_BUDGET, NETWORK_POLICY, POD, SCALED_OBJECT, SERVICE
from kvcommons_operator.kube.watches import Change, Key
from kvcommons_operator.observed import Manifest, Pod, Ref, replica_writers
from kvcommons_operator.reconcile.owners import Owner, interned, owner_of_child, owners_of_pod

NOISE: Final = frozenset({"resourceVersion", "managedFields", "generation", "creationTimestamp", "selfLink"})
"""Metadata that changes without anybody having changed a wish."""
CONTROLLERS_PREFIX: Final = "deployment.kubernetes.io/"
"""Annotations of Kubernetes' own controller of Deployments (revision, ...): it writes them on every one that we make."""
COMPRESSION: Final = 1
UNREAD_STATUS: Final = frozenset(
    {AUTOSCALER.name, DISRUPTION_BUDGET.name, NETWORK_POLICY.name, SERVICE.name, SCALED_OBJECT.name}
)
"""Kinds whose status no plan reads, and whose controllers write it all the time: nobody is woken for it."""


@dataclass(frozen=True, slots=True)
class Child:
    """One live object."""

    ref: Ref
    uid: str
    owner: Owner | None
    digest: bytes
    """Of everything but its status: equal to that of our last apply while nobody has changed it since."""
    status_digest: bytes
    packed: bytes

    @property
    def manifest(self) -> Manifest:
        """The whole object, unpacked anew each time."""
        document: Manifest = orjson.loads(zlib.decompress(self.packed))
        return document


def keep_child(kind: tuple[str, str]) -> Callable[[Manifest], Child]:
    """For a watch of that (apiVersion, kind): lists do not say it of their items."""

    def keep(item: Manifest) -> Child:
        document = {**item, "apiVersion": kind[0], "kind": kind[1]}
        metadata = document["metadata"] = {**item["metadata"], "managedFields": replica_writers(item["metadata"])}
        namespace = str(metadata.get("namespace") or "")
        return Child(
            ref=Ref(*kind, namespace, str(metadata["name"])),
            uid=str(metadata.get("uid") or ""),
            owner=owner_of_child(metadata.get("labels") or {}, namespace),
            digest=wish_digest(document),
            status_digest=b"" if kind[1] in UNREAD_STATUS else _digest(document.get("status")),
            packed=zlib.compress(orjson.dumps(document), COMPRESSION),
        )

    return keep


def wish_digest(document: Mapping[str, Any]) -> bytes:
    """Of what is wished for, not of what is so: everything but status and the server's own metadata."""
    wish = {name: value for name, value in document.items() if name != "status"}
    metadata = wish["metadata"] = {k: v for k, v in document["metadata"].items() if k not in NOISE}
    annotations = metadata.pop("annotations", None) or {}
    kept = {name: value for name, value in annotations.items() if not name.startswith(CONTROLLERS_PREFIX)}
    if kept:
        metadata["annotations"] = kept
    return _digest(wish)


def _digest(value: object) -> bytes:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def keep_pod(item: Manifest) -> Pod:
    """For the watch of pods."""
    pod = Pod.parse(item)
    return replace(pod, labels=interned(pod.labels))


class Inventory:
    """Fed by watches; read by reconciles. Tells whose things have changed."""

    def __init__(self, on_owner: Callable[[Owner], None], on_pod: Callable[[Pod | None, Pod | None], None]) -> None:
        self._children: dict[Owner, dict[Ref, Child]] = {}
        self._pods: dict[Owner, dict[Key, Pod]] = {}
        self._by_ref: dict[Ref, Child] = {}
        self._on_owner = on_owner
        self._on_pod = on_pod

    def children(self, owner: Owner) -> dict[Ref, Manifest]:
        """Live children of a resource."""
        return {ref: child.manifest for ref, child in self._children.get(owner, {}).items()}

    def pods(self, owner: Owner) -> tuple[Pod, ...]:
        """Pods that a resource looks at, in no order."""
        return tuple(self._pods.get(owner, {}).values())

    def child(self, ref: Ref) -> Child | None:
        """One child, whosever it is."""
        return self._by_ref.get(ref)

    def counts(self) -> dict[str, int]:
        """How many objects there are of each kind."""
        found: dict[str, int] = {POD.name: sum(len(pods) for pods in self._pods.values())}
        for ref in self._by_ref:
            found[ref.kind] = found.get(ref.kind, 0) + 1
        return found

    def child_changed(self, change: Change[Child]) -> None:
        """A watch saw a child come, change or go; tells its owners, unless nothing of it says anything new."""
        old, new = change.old, change.new
        if old is not None and (new is None or new.owner != old.owner):
            self._drop(old)
        if new is not None:
            self._by_ref[new.ref] = new
            if new.owner is not None:
                self._children.setdefault(new.owner, {})[new.ref] = new
        same = old is not None and new is not None and _says(old) == _says(new)
        for owner in {child.owner for child in (old, new) if child is not None and child.owner is not None}:
            if not same:
                self._on_owner(owner)

    def _drop(self, child: Child) -> None:
        self._by_ref.pop(child.ref, None)
        if child.owner is not None:
            siblings = self._children.get(child.owner, {})
            siblings.pop(child.ref, None)
            if not siblings:
                self._children.pop(child.owner, None)

    def pod_changed(self, change: Change[Pod]) -> None:
        """A watch saw a pod come, change or go; tells its owners."""
        owners: set[Owner] = set()
        for pod in (change.old, change.new):
            if pod is not None:
                owners.update(owners_of_pod(pod.labels, pod.namespace))
        for owner in owners:
            pods = self._pods.setdefault(owner, {})
            pods.pop(change.key, None)
            if change.new is not None and owner in owners_of_pod(change.new.labels, change.new.namespace):
                pods[change.key] = change.new
            if not pods:
                self._pods.pop(owner, None)
        self._on_pod(change.old, change.new)
        for owner in owners:
            self._on_owner(owner)


def _says(child: Child) -> tuple[bytes, bytes]:
    return child.digest, child.status_digest
