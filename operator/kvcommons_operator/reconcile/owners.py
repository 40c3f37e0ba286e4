"""Whose an object is: read from the labels that every child carries, in whatever namespace it stands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvcommons_operator import names


class Owner(NamedTuple):
    """A pool or a deployment, as labels name it (a long name is shortened there)."""

    kind: str
    namespace: str
    name: str


def owner_of(kind: str, namespace: str, name: str) -> Owner:
    """The owner that a resource's children name."""
    return Owner(kind, names.label_value(namespace), names.label_value(name))


def pool_of(labels: Mapping[str, str], namespace: str) -> Owner | None:
    """The pool that an object belongs to or uses."""
    name = labels.get(names.POOL_LABEL)
    return Owner(names.POOL_KIND, labels.get(names.POOL_NAMESPACE_LABEL, namespace), name) if name else None


def deployment_of(labels: Mapping[str, str], namespace: str) -> Owner | None:
    """The deployment that an object belongs to."""
    name = labels.get(names.DEPLOYMENT_LABEL)
    if not name:
        return None
    return Owner(names.DEPLOYMENT_KIND, labels.get(names.DEPLOYMENT_NAMESPACE_LABEL, namespace), name)


def owner_of_child(labels: Mapping[str, str], namespace: str) -> Owner | None:
    """Whose child an object is: a deployment's, if it names one; it may name that one's pool as well."""
    return deployment_of(labels, namespace) or pool_of(labels, namespace)


def owners_of_pod(labels: Mapping[str, str], namespace: str) -> tuple[Owner, ...]:
    """Everybody who looks at a pod: with `sidecar` an engine's pod holds a node of the pool.

    Whoever may make pods in some namespace chooses their labels: one that claims to be a part of a pool elsewhere is none. Of a
    deployment's parts only its router may stand in another namespace."""
    pool, deployment = pool_of(labels, namespace), deployment_of(labels, namespace)
    if pool is not None and pool.namespace != namespace:
        pool = None
    if deployment is not None and deployment.namespace != namespace and labels.get(names.COMPONENT) != names.ROUTER:
        deployment = None
    return tuple(owner for owner in (deployment, pool) if owner is not None)


def interned(words: Mapping[str, Any]) -> dict[str, str]:
    """Labels of thousands of pods are few words: each is kept once."""
    return {sys.intern(str(name)): sys.intern(str(value)) for name, value in words.items()}
