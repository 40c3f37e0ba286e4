"""What the operator says about resources: conditions, counts, and never a list that grows with the cluster."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from kvcommons_operator.api.base import Model
from kvcommons_operator.api.common import Label, ListType, ObjectName, StrictInt

UNHEALTHY_MAX: Final = 16
REFERENCES_MAX: Final = 16
CONDITIONS_MAX: Final = 16
TIERS_MAX: Final = 4

Count = Annotated[StrictInt, Field(ge=0)]
Text = Annotated[str, Field(max_length=1_024)]
Generation = Annotated[StrictInt, Field(ge=0)]
Time = Annotated[
    str,
    Field(
        max_length=40,
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9:]+)$",
        json_schema_extra={"format": "date-time"},
    ),
]
Selector = Annotated[str, Field(max_length=4_096)]


class StatusModel(Model):
    """A part of a status. What another version of the operator wrote there is left unread."""

    model_config = ConfigDict(extra="ignore")


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StatusModel):
    """One thing that is so, is not so, or is not known."""

    type: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Z][A-Za-z0-9]*$")]
    """What it is about, such as Ready."""
    status: ConditionStatus
    """Whether it is so."""
    observed_generation: Generation = 0
    """The generation of the resource that was looked at."""
    last_transition_time: Time
    """When status last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Z][A-Za-z0-9]*$")]
    """Why, in one word for programs."""
    message: Annotated[str, Field(max_length=4_096)] = ""
    """Why, and what to do, for people."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=CONDITIONS_MAX), ListType("map", "type")]


class UnhealthyNode(StatusModel):
    """A cache node that is not well."""

    name: ObjectName
    """Name of the Kubernetes node, or of the pod with placement sidecar."""
    reason: Annotated[str, Field(max_length=128)]
    """Why, in one word."""
    message: Text = ""
    """Why, and what to do."""


class NodeCounts(StatusModel):
    """How many cache nodes there are."""

    desired: Count = 0
    """How many there should be."""
    ready: Count = 0
    """How many serve."""
    updated: Count = 0
    """How many are as the resource now says."""
    unhealthy: Count = 0
    """How many are not well."""


class TierStatus(StatusModel):
    """What is behind the memory of the cache nodes, all of them together."""

    type: Annotated[str, Field(max_length=32)]
    """What it is, such as disk."""
    capacity: Annotated[str, Field(max_length=24)] = ""
    """Of all cache nodes that serve, as a quantity."""
    used_percent: Annotated[StrictInt, Field(ge=0, le=100)] | None = None
    """How much of it holds KV."""
    serving: Count = 0
    """On how many cache nodes it serves."""
    degraded: Count = 0
    """On how many it does not, or not wholly."""


class IndexStatus(StatusModel):
    """How the index is."""

    replicas: Count = 0
    """How many pods a managed index should have."""
    ready_replicas: Count = 0
    """How many of them serve."""
    address: Annotated[str, Field(max_length=1_024)] = ""
    """Where it is, without user and password."""
    members: Count = 0
    """How many cache nodes and engines are known to it."""


class Reference(StatusModel):
    """An InferenceDeployment that uses the pool."""

    namespace: Label
    """Its namespace."""
    name: ObjectName
    """Its name."""


class KVCachePoolStatus(StatusModel):
    """What the pool is."""

    observed_generation: Generation = 0
    """The generation of the spec that this status is about."""
    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Progressing, Available, Ready, IndexConsistent; with tiers behind memory TiersHealthy."""
    nodes: NodeCounts = NodeCounts()
    """How many cache nodes there are."""
    unhealthy_nodes: Annotated[tuple[UnhealthyNode, ...], Field(max_length=UNHEALTHY_MAX), ListType("map", "name")] = ()
    """Some of the cache nodes that are not well; nodes.unhealthy counts all."""
    index: IndexStatus = IndexStatus()
    """How the index is."""
    memory: Annotated[str, Field(max_length=24)] = ""
    """Memory of all cache nodes that serve, as a quantity."""
    memory_used_percent: Annotated[StrictInt, Field(ge=0, le=100)] | None = None
    """How much of it holds KV."""
    tiers: Annotated[tuple[TierStatus, ...], Field(max_length=TIERS_MAX), ListType("map", "type")] = ()
    """What is behind the memory."""
    hit_percent: Annotated[StrictInt, Field(ge=0, le=100)] | None = None
    """Of the chunks that engines lately asked for, how many were there."""
    references: Count = 0
    """How many InferenceDeployments use the pool. It can't be deleted while there are any."""
    referenced_by: Annotated[tuple[Reference, ...], Field(max_length=REFERENCES_MAX), ListType("atomic")] = ()
    """Some of them; references counts all."""


class RouterStatus(StatusModel):
    """How the routers are."""

    namespace: Annotated[str, Field(max_length=63)] = ""
    """Namespace where they run: the pool's."""
    replicas: Count = 0
    """How many there should be."""
    ready_replicas: Count = 0
    """How many serve."""


class RoleStatus(StatusModel):
    """How the engines of one role are."""

    name: Annotated[str, Field(max_length=32)]
    """prefill or decode."""
    replicas: Count = 0
    """How many there are."""
    ready_replicas: Count = 0
    """How many serve."""


class UnhealthyReplica(StatusModel):
    """An engine pod that is not well."""

    name: ObjectName
    """Name of the pod."""
    reason: Annotated[str, Field(max_length=128)]
    """Why, in one word."""
    message: Text = ""
    """Why, and what to do."""


class InferenceDeploymentStatus(StatusModel):
    """What is served."""

    observed_generation: Generation = 0
    """The generation of the spec that this status is about."""
    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Progressing, Available, Ready, ConnectorLoaded; with roles Disaggregated."""
    replicas: Count = 0
    """How many engines there are."""
    ready_replicas: Count = 0
    """How many of them serve."""
    updated_replicas: Count = 0
    """How many of them are as the resource now says."""
    connected_replicas: Count = 0
    """How many of them share their KV by the pool."""
    selector: Selector = ""
    """Selects the engines' pods, for autoscalers."""
    roles: Annotated[tuple[RoleStatus, ...], Field(max_length=4), ListType("map", "name")] = ()
    """How the engines of each role are."""
    unhealthy_replicas: Annotated[
        tuple[UnhealthyReplica, ...], Field(max_length=UNHEALTHY_MAX), ListType("map", "name")
    ] = ()
    """Some of the engine pods that are not well."""
    router: RouterStatus = RouterStatus()
    """How the routers are."""
    url: Annotated[str, Field(max_length=1_024)] = ""
    """Where clients inside the cluster reach it: the base of OpenAI's API."""


class InferenceRoleStatus(StatusModel):
    """How the engines of the role are."""

    observed_generation: Generation = 0
    """The generation of the spec that this status is about."""
    conditions: Conditions = ()
    """Available, Ready."""
    replicas: Count = 0
    """How many engines there are."""
    ready_replicas: Count = 0
    """How many of them serve."""
    selector: Selector = ""
    """Selects the role's pods, for autoscalers."""
