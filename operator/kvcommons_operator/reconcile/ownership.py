"""Whose an object is, before anything is written on it: ours, somebody else's of the same name, or another operator's.

What is applied by force takes over whatever has the name. So what is not known to be there is applied on a version that no object has: that
makes it, or changes nothing. If there is one, it is looked at by an empty patch that is only tried (dryRun): it answers with the metadata alone
and needs no right that an apply does not need, so that no Secret is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcommons_operator import names
from kvcommons_operator.kube.errors import KubeError
from kvcommons_operator.observed import Manifest, Ref
from kvcommons_operator.reconcile.owners import deployment_of, owner_of, owner_of_child, pool_of
from kvcommons_operator.reconcile.resources import Id

CONFLICT_STATUS = 409


class NameTakenError(KubeError):
    """An object of somebody else has a child's name: nothing of it is touched, and a person must rename or delete it."""


def is_ours(metadata: Mapping[str, Any], key: Id, uid: str, written_uid: str = "") -> bool:
    """Whether a live object is the child of this resource.

    :param uid: the resource's. :param written_uid: of the object of this name that we wrote last, if any."""
    if written_uid and metadata.get("uid") == written_uid:
        return True
    if any(one.get("uid") == uid for one in metadata.get("ownerReferences") or ()):
        return True
    labels = metadata.get("labels") or {}
    managed = labels.get(names.MANAGED_BY) == names.MANAGER
    return managed and owner_of_child(labels, str(metadata.get("namespace") or "")) == owner_of(*key)


def taken(ref: Ref, metadata: Mapping[str, Any], key: Id) -> NameTakenError:
    """The error that says so, with the way out."""
    message = (
        f"it is {_whose(metadata)}, and is left as it is: rename or delete it, and this goes on by itself; "
        f"or give this {key.kind} another name"
    )
    return NameTakenError(CONFLICT_STATUS, "NameTaken", message, f"{ref.kind} {ref.namespace}/{ref.name}")


def _whose(metadata: Mapping[str, Any]) -> str:
    labels, namespace = metadata.get("labels") or {}, str(metadata.get("namespace") or "")
    owner = deployment_of(labels, namespace) or pool_of(labels, namespace)
    if labels.get(names.MANAGED_BY) == names.MANAGER and owner is not None:
        return f"a part of {owner.kind} {owner.namespace}/{owner.name}"
    return "somebody else's"


def other_operator(resource: Manifest, identity: str) -> str:
    """The operator that looks after a resource, if it is not this one."""
    mark = (resource["metadata"].get("annotations") or {}).get(names.OPERATOR, "")
    return mark if identity and mark != identity else ""
