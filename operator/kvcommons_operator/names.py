"""Every name that the operator gives: its API group, labels, annotations, ports and the names of children."""

from __future__ import annotations

import hashlib
import re
from typing import Final

GROUP: Final = "kvcommons.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
POOL_KIND: Final = "KVCachePool"
DEPLOYMENT_KIND: Final = "InferenceDeployment"
ROLE_KIND: Final = "InferenceRole"
POOL_PLURAL: Final = "kvcachepools"
DEPLOYMENT_PLURAL: Final = "inferencedeployments"
ROLE_PLURAL: Final = "inferenceroles"

FIELD_MANAGER: Final = "kvcommons-operator"
POOL_FINALIZER: Final = f"{GROUP}/pool-in-use"
"""On every pool: nobody loses the pool that a deployment uses."""
DEPLOYMENT_FINALIZER: Final = f"{GROUP}/foreign-children"
"""On deployments whose router stands in another namespace, which the garbage collector does not reach."""

# Labels of others.
NAME: Final = "app.kubernetes.io/name"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
PART_OF: Final = "app.kubernetes.io/part-of"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
PROJECT: Final = "kvcommons"
MANAGER: Final = "kvcommons-operator"

# Our own labels.
POOL_LABEL: Final = f"{GROUP}/pool"
POOL_NAMESPACE_LABEL: Final = f"{GROUP}/pool-namespace"
DEPLOYMENT_LABEL: Final = f"{GROUP}/deployment"
DEPLOYMENT_NAMESPACE_LABEL: Final = f"{GROUP}/deployment-namespace"
ROLE_LABEL: Final = f"{GROUP}/role"

# Values of the component label.
CACHE_NODE: Final = "cache-node"
ENGINE: Final = "engine"
ENGINE_WORKER: Final = "engine-worker"
"""A pod that follows the first one of a replica that is spread over nodes."""
ROUTER: Final = "router"
INDEX: Final = "index"
SENTINEL: Final = "sentinel"

# Annotations.
TEMPLATE_HASH: Final = f"{GROUP}/template-hash"
"""On a pod template and its pods: which wish they were made from. A cache node whose hash differs is outdated."""
SHAPE_HASH: Final = f"{GROUP}/template-hash-but-size"
"""The same of all but what a living pod can take: the arena's size and the memory for it. A cache node that is outdated by the first and
not by this one is given another size where it is."""
RESIZING: Final = f"{GROUP}/resizing"
"""On a cache node's pod that is being given another size: how far that is (sizing.py). Its memory may differ from its template's for now."""
ENGINE_HASH: Final = f"{GROUP}/requested-hash"
"""On an engine's workload: what the user asked for, without what the operator's version decides."""
PINNED: Final = f"{GROUP}/pinned"
"""On an engine's workload: the parts that the operator's version decided when it was made, as JSON."""
DATA_PARALLEL: Final = f"{GROUP}/data-parallel-size"
REPLICAS_FROM: Final = f"{GROUP}/replicas-from-spec"
"""On a role object: the number in the deployment when the operator last wrote it; a newer wish wins over a scaled one."""
OPERATOR: Final = f"{GROUP}/operator"
"""On a resource: which operator looks after it (its namespace and Lease). Another one leaves it alone."""
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"

CACHE_NODE_CONTAINER: Final = "cache-node"

CONTROL_PORT: Final = 9470
ROUTER_PORT: Final = 8000
ENGINE_PORT: Final = 8000
REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
SENTINEL_MASTER: Final = "kvcommons"

USER: Final = 65532
"""The user and group of every container that is ours, and of engines unless their template says otherwise."""

NAME_CHARACTERS_MAX: Final = 63
WORKLOAD_CHARACTERS_MAX: Final = 52
"""A StatefulSet puts its name and a hash of 10 into a label of 63."""
LEADER_WORKER_SET_CHARACTERS_MAX: Final = 46
"""Each replica of a LeaderWorkerSet is a StatefulSet with its number behind the name (-99999 at most)."""
_HASH_CHARACTERS: Final = 8
_DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def short_hash(*parts: str) -> str:
    """8 hexadecimal digits that stand for these words; (a, b-c) and (a-b, c) differ."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return digest[:_HASH_CHARACTERS]


def shortened(name: str, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """The name itself where it is a DNS label short enough, else its beginning and a hash of the whole."""
    if len(name) <= characters_max and _DNS_LABEL.fullmatch(name):
        return name
    clean = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not clean[:1].isalpha():
        clean = f"x{clean}"
    return f"{clean[: characters_max - _HASH_CHARACTERS - 1].rstrip('-')}-{short_hash(name)}"


def child(owner: str, part: str, characters_max: int = WORKLOAD_CHARACTERS_MAX) -> str:
    """The name of an owner's child: `OWNER-PART`; `part` stays readable where the whole must be shortened."""
    whole = f"{owner}-{part}"
    if len(whole) <= characters_max and _DNS_LABEL.fullmatch(whole):
        return whole
    return f"{shortened(owner, characters_max - len(part) - 1) if len(owner) else 'x'}-{part}"


def label_value(name: str) -> str:
    """A resource's name as a label value: itself up to 63 characters, else shortened with a hash."""
    return name if len(name) <= NAME_CHARACTERS_MAX else shortened(name)
