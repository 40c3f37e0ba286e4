"""Our own resources as kopf brings them, and how they refer to one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from kvcommons_operator import names
from kvcommons_operator.metrics import ConditionNow
from kvcommons_operator.observed import Manifest, Ref, User, replica_writers
from kvcommons_operator.reconcile.owners import Owner, deployment_of, owner_of

GONE_MAX: Final = 1_024


class Id(NamedTuple):
    """One resource of ours, by its real name."""

    kind: str
    namespace: str
    name: str


class Resources:
    """Everything of the three kinds. A version that is older than the one here is no news."""

    def __init__(self) -> None:
        self._items: dict[Id, Manifest] = {}
        self._by_owner: dict[Owner, Id] = {}
        self._gone: dict[str, None] = {}
        """Uids: the answer to a request of ours may come after the event that its object is gone."""

    def get(self, resource: Id) -> Manifest | None:
        """One resource, or None."""
        return self._items.get(resource)

    def of_kind(self, kind: str) -> Iterator[tuple[Id, Manifest]]:
        """All of a kind, as they are now."""
        return ((key, item) for key, item in list(self._items.items()) if key.kind == kind)

    def conditions(self) -> Iterator[ConditionNow]:
        """Every condition of every resource, as their status says it."""
        for key, item in list(self._items.items()):
            for condition, status, _ in _conditions(item):
                yield ConditionNow(key.kind, key.namespace, key.name, str(condition), str(status))

    def of_owner(self, owner: Owner) -> Id | None:
        """By the owner that children's labels name."""
        return self._by_owner.get(owner)

    def put(self, kind: str, body: Mapping[str, Any]) -> tuple[Id, Manifest | None, Manifest]:
        """Returns (which, what was here before, what is here now)."""
        metadata = dict(body["metadata"])
        writers = replica_writers(metadata) if kind == names.ROLE_KIND else []
        metadata.pop("managedFields", None)
        if writers:
            metadata["managedFields"] = writers
        key = Id(kind, str(metadata["namespace"]), str(metadata["name"]))
        item: Manifest = {**body, "apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata}
        old = self._items.get(key)
        if metadata.get("uid") in self._gone:
            return key, old, old if old is not None else item
        if old is not None and _version(item) < _version(old):
            return key, old, old
        self._items[key] = item
        self._by_owner[owner_of(kind, key.namespace, key.name)] = key
        return key, old, item

    def remove(self, key: Id) -> Manifest | None:
        """It is gone; answers that come late do not bring it back. Returns what was here."""
        self._by_owner.pop(owner_of(*key), None)
        item = self._items.pop(key, None)
        if item is not None and item["metadata"].get("uid"):
            if len(self._gone) >= GONE_MAX:
                self._gone.pop(next(iter(self._gone)))
            self._gone[item["metadata"]["uid"]] = None
        return item

    def uids(self, kind: str) -> frozenset[str]:
        """Of all that is known of a kind."""
        return frozenset(str(item["metadata"].get("uid")) for _, item in self.of_kind(kind))

    def replace(
        self,
        kind: str,
        bodies: Iterable[Mapping[str, Any]],
        namespaces: Iterable[str | None],
        known: frozenset[str] | None = None,
    ) -> None:
        """A complete list, of these namespaces (None: of all).

        :param known: uids of what was here when the list was asked for: what has come since may be missing in it and stays."""
        found = {self.put(kind, body)[0] for body in bodies}
        inside = set(namespaces)
        for key, item in list(self.of_kind(kind)):
            newer = known is not None and item["metadata"].get("uid") not in known
            if key not in found and not newer and (None in inside or key.namespace in inside):
                self.remove(key)

    # relations --------------------------------------------------------------------------------------------------------

    def pool_of(self, deployment: Manifest | None) -> Id | None:
        """The pool that a deployment names, whether it is there or not."""
        ref = ((deployment or {}).get("spec") or {}).get("poolRef")
        if deployment is None or not isinstance(ref, Mapping) or not ref.get("name"):
            return None
        return Id(names.POOL_KIND, str(ref.get("namespace") or deployment["metadata"]["namespace"]), str(ref["name"]))

    def users_of(self, pool: Id) -> tuple[User, ...]:
        """Those beside the pool that name it, and those elsewhere that were allowed to.

        A guest that was let in once bears our finalizer, since its router stands beside the pool. Without that anybody could keep
        anybody's pool from going, by naming it."""
        found = [
            user_of(item)
            for key, item in self.of_kind(names.DEPLOYMENT_KIND)
            if self.pool_of(item) == pool
            and (
                key.namespace == pool.namespace
                or names.DEPLOYMENT_FINALIZER in (item["metadata"].get("finalizers") or [])
            )
        ]
        return tuple(sorted(found, key=lambda user: (user.namespace, user.name)))

    def deployments_of(self, pool: Id) -> list[Id]:
        """Everybody who names a pool, permitted or not."""
        return [key for key, item in self.of_kind(names.DEPLOYMENT_KIND) if self.pool_of(item) == pool]

    def roles_of(self, deployment: Id) -> dict[Ref, Manifest]:
        """The role objects of a deployment."""
        owner = owner_of(*deployment)
        return {
            Ref.of(item): item
            for key, item in self.of_kind(names.ROLE_KIND)
            if deployment_of(item["metadata"].get("labels") or {}, key.namespace) == owner
        }

    def deployment_of_role(self, role: Manifest) -> Id | None:
        """Whose role object it is, if that deployment is here."""
        metadata = role["metadata"]
        owner = deployment_of(metadata.get("labels") or {}, str(metadata["namespace"]))
        return self._by_owner.get(owner) if owner is not None else None


def user_of(deployment: Manifest) -> User:
    """What a pool needs to know of a deployment that names it."""
    metadata, spec = deployment["metadata"], deployment.get("spec") or {}
    model = spec.get("model") or {}
    return User(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        deleting="deletionTimestamp" in metadata,
        models=(str(model["name"]),) if model.get("name") else (),
    )


def wish_changed(old: Manifest | None, new: Manifest) -> bool:
    """Something that a plan reads has changed: not only the status, which we write ourselves."""
    return old is None or _wish(old) != _wish(new)


def truth_changed(old: Manifest | None, new: Manifest) -> bool:
    """The same, or one of its conditions: what those who refer to it read."""
    return wish_changed(old, new) or _conditions(old) != _conditions(new)


def _wish(item: Manifest) -> tuple[object, ...]:
    metadata = item["metadata"]
    kept = (metadata.get(name) for name in ("uid", "deletionTimestamp", "finalizers", "labels", "annotations"))
    return (item.get("spec"), *kept)


def _conditions(item: Manifest | None) -> list[tuple[object, ...]]:
    told = ((item or {}).get("status") or {}).get("conditions") or []
    return [(c.get("type"), c.get("status"), c.get("reason")) for c in told]


def _version(item: Manifest) -> int:
    version = str(item["metadata"].get("resourceVersion") or "")
    return int(version) if version.isdigit() else 0
