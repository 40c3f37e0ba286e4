"""Parts of pods that a resource may override; the spelling and the meaning are those of Kubernetes' own pod specification."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import (
    EMPTY,
    Annotations,
    EnvName,
    KeyName,
    Labels,
    LabelValue,
    ListType,
    LocalRef,
    ObjectName,
    QualifiedName,
    ResourceName,
    StrictBool,
    StrictInt,
)
from kvcommons_operator.api.confinement import ContainerSecurity, PodSecurity
from kvcommons_operator.api.quantities import ResourceQuantity, cel_digits, cel_quantity, parse_quantity
from kvcommons_operator.api.scheduling import Affinity, TopologySpreads
from kvcommons_operator.api.volumes import Mounts, Volumes


def _within_limits(resources: Resources) -> bool:
    """Whether no request is over its limit."""
    return all(
        parse_quantity(amount) <= parse_quantity(resources.limits[name])
        for name, amount in resources.requests.items()
        if name in resources.limits
    )


def _devices_have_limits(resources: Resources) -> bool:
    return all(
        name in resources.limits and parse_quantity(amount) == parse_quantity(resources.limits[name])
        for name, amount in resources.requests.items()
        if "/" in name
    )


def _devices_are_whole(resources: Resources) -> bool:
    return all(amount.isascii() and amount.isdigit() for name, amount in resources.limits.items() if "/" in name)


_REQUEST: Final = cel_quantity("self.requests[key]")
_LIMIT: Final = cel_quantity("self.limits[key]")


class Resources(Model):
    """What a container asks of its node, and at most gets."""

    requests: Annotated[dict[ResourceName, ResourceQuantity], Field(max_length=16)] = EMPTY
    """What the scheduler sets aside: cpu, memory, nvidia.com/gpu and others."""
    limits: Annotated[dict[ResourceName, ResourceQuantity], Field(max_length=16)] = EMPTY
    """What the container may use at most."""

    RULES = (
        Rule(
            cel=f"self.requests.all(key, !(key in self.limits) || {_REQUEST}.compareTo({_LIMIT}) <= 0)",
            message="no request may be over its limit; raise the limit or lower the request",
            holds=_within_limits,
            field=".requests",
        ),
        Rule(
            cel="self.requests.all(key, !key.contains('/')"
            f" || (key in self.limits && {_REQUEST}.compareTo({_LIMIT}) == 0))",
            message="what can't be shared, such as nvidia.com/gpu, goes in limits; its request is left out or equal",
            holds=_devices_have_limits,
            field=".requests",
        ),
        Rule(
            cel=f"self.limits.all(key, !key.contains('/') || {cel_digits('self.limits[key]')})",
            message="devices such as nvidia.com/gpu are counted in whole numbers, such as 8",
            holds=_devices_are_whole,
            field=".limits",
        ),
    )


class EnvKeyRef(Model):
    """A key of a Secret or ConfigMap in the pods' namespace."""

    name: ObjectName
    """Name of the Secret or ConfigMap."""
    key: KeyName
    """Key whose value is taken."""
    optional: StrictBool | None = None
    """Whether the variable is left out, instead of the pod waiting, where the object or key is missing."""


FIELD_PATTERN: Final = (
    r"^(metadata\.(name|namespace|uid|(labels|annotations)\['[A-Za-z0-9._/-]+'\])"
    r"|spec\.(nodeName|serviceAccountName)|status\.(hostIP|podIP)s?)$"
)


class FieldRef(Model):
    """A field of the pod itself."""

    field_path: Annotated[str, Field(max_length=400, pattern=FIELD_PATTERN)]
    """Path of the field, such as status.podIP or metadata.annotations['key']."""


class EnvSource(Model):
    """Where a variable's value comes from; exactly one."""

    secret_key_ref: EnvKeyRef | None = None
    """A key of a Secret."""
    config_map_key_ref: EnvKeyRef | None = None
    """A key of a ConfigMap."""
    field_ref: FieldRef | None = None
    """A field of the pod."""

    RULES = (
        Rule(
            cel="(has(self.secretKeyRef) ? 1 : 0) + (has(self.configMapKeyRef) ? 1 : 0) + (has(self.fieldRef) ? 1 : 0) == 1",
            message="give exactly one of secretKeyRef, configMapKeyRef and fieldRef",
            holds=lambda it: sum(x is not None for x in (it.secret_key_ref, it.config_map_key_ref, it.field_ref)) == 1,
        ),
    )


class EnvVar(Model):
    """An environment variable."""

    name: EnvName
    """Name of the variable. Names that begin with KVCOMMONS_ belong to the operator."""
    value: Annotated[str, Field(max_length=16_384)] | None = None
    """Its value; empty when neither this nor `valueFrom` is given."""
    value_from: EnvSource | None = None
    """Takes the value from elsewhere."""

    RULES = (
        Rule(
            cel="!(has(self.value) && has(self.valueFrom))",
            message="give `value` or `valueFrom`, not both",
            holds=lambda it: it.value is None or it.value_from is None,
            field=".value",
        ),
        Rule(
            cel="!self.name.startsWith('KVCOMMONS_')",
            message="variables that begin with KVCOMMONS_ are set by the operator; use the resource's own fields",
            holds=lambda it: not it.name.startswith("KVCOMMONS_"),
            field=".name",
            reason="FieldValueForbidden",
        ),
    )


Env = Annotated[tuple[EnvVar, ...], Field(max_length=64), ListType("map", "name")]


class TolerationOperator(StrEnum):
    """How a taint is compared."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does to pods that don't tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Model):
    """A taint of nodes that the pods put up with."""

    key: QualifiedName | None = None
    """Key of the taint; every key when left out, which needs operator Exists."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """Equal compares the value, and is what is meant when left out; Exists does not look at it."""
    value: LabelValue | None = None
    """Value of the taint, for operator Equal."""
    effect: TaintEffect | None = None
    """Effect that is tolerated; every one when left out."""
    toleration_seconds: Annotated[StrictInt, Field(ge=0, le=31_536_000)] | None = None
    """How long a pod stays after such a taint came (NoExecute only); for ever when left out."""

    RULES = (
        Rule(
            cel="has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            message="a toleration without `key` needs operator Exists",
            holds=lambda it: it.key is not None or it.operator == "Exists",
            field=".operator",
        ),
        Rule(
            cel="!has(self.operator) || self.operator != 'Exists' || !has(self.value)",
            message="operator Exists takes no `value`",
            holds=lambda it: it.operator != "Exists" or it.value is None,
            field=".value",
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="tolerationSeconds needs effect NoExecute",
            holds=lambda it: it.toleration_seconds is None or it.effect == "NoExecute",
            field=".effect",
        ),
    )


Tolerations = Annotated[tuple[Toleration, ...], Field(max_length=16), ListType("atomic")]


class PodMetadata(Model):
    """Labels and annotations beside the operator's own."""

    labels: Labels = EMPTY
    """Labels to add. Those under kvcommons.io/ and app.kubernetes.io/ belong to the operator."""
    annotations: Annotations = EMPTY
    """Annotations to add. Those under kvcommons.io/ belong to the operator."""

    RULES = (
        Rule(
            cel="self.labels.all(key, !key.startsWith('kvcommons.io/') && !key.startsWith('app.kubernetes.io/'))",
            message="labels under kvcommons.io/ and app.kubernetes.io/ belong to the operator; take another prefix",
            holds=lambda it: not any(k.startswith(("kvcommons.io/", "app.kubernetes.io/")) for k in it.labels),
            field=".labels",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="self.annotations.all(key, !key.startsWith('kvcommons.io/'))",
            message="annotations under kvcommons.io/ belong to the operator; take another prefix",
            holds=lambda it: not any(key.startswith("kvcommons.io/") for key in it.annotations),
            field=".annotations",
            reason="FieldValueForbidden",
        ),
    )


Secrets = Annotated[tuple[LocalRef, ...], Field(max_length=8), ListType("map", "name")]


class PodOverrides(Model):
    """What a user may say about pods that the operator builds; its own settings stay where these are silent."""

    metadata: PodMetadata = PodMetadata()
    """Labels and annotations to add."""
    image_pull_secrets: Secrets = ()
    """Secrets to pull the images with."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods; one of the operator's when left out."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, such as nvidia."""
    security_context: PodSecurity | None = None
    """Who the pods' processes run as."""
    container_security_context: ContainerSecurity | None = None
    """What the main container's processes may do."""
    env: Env = ()
    """Environment variables of the main container, beside the operator's."""


class PodTemplate(PodOverrides):
    """What a user may say about engines' pods; the operator's own settings stay where it is silent."""

    node_selector: Labels = EMPTY
    """Labels that a node must have."""
    tolerations: Tolerations = ()
    """Taints of nodes that the pods put up with."""
    affinity: Affinity | None = None
    """Which nodes and neighbours the pods want."""
    topology_spread_constraints: TopologySpreads = ()
    """How evenly the pods are spread."""
    scheduler_name: ObjectName | None = None
    """Scheduler that places the pods; Kubernetes' own when left out."""
    volumes: Volumes = ()
    """Volumes to add."""
    volume_mounts: Mounts = ()
    """Where the engine's container sees them."""

    RULES = (
        Rule(
            cel="self.volumeMounts.all(mount, self.volumes.exists(volume, volume.name == mount.name))",
            message="every volumeMount names a volume of `volumes`",
            holds=lambda it: {mount.name for mount in it.volume_mounts} <= {volume.name for volume in it.volumes},
            field=".volumeMounts",
        ),
    )
