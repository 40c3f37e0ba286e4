"""Engines: the program, how many of them, and how their number follows the load."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import (
    EMPTY,
    Argument,
    Image,
    Labels,
    ListType,
    LocalRef,
    Replicas,
    Seconds,
    StrictInt,
)
from kvcommons_operator.api.pods import Env, PodTemplate, Resources, Tolerations
from kvcommons_operator.api.quantities import ResourceQuantity, Size, cel_digits, cel_quantity, parse_quantity

OWNED_ARGUMENTS: Final = ("--model", "--served-model-name", "--port", "--host", "--kv-transfer-config")
METRICS_MAX: Final = 8

Arguments = Annotated[tuple[Argument, ...], Field(max_length=128), ListType("atomic")]


class EngineType(StrEnum):
    """An inference engine."""

    VLLM = "vllm"
    SGLANG = "sglang"


class UpgradePolicy(StrEnum):
    """What a newer operator may do to running engines."""

    KEEP = "Keep"
    ROLL = "Roll"


def _owned(argument: str) -> bool:
    return any(argument == name or argument.startswith(f"{name}=") for name in OWNED_ARGUMENTS)


class Engine(Model):
    """The inference engine and what it needs."""

    type: EngineType = EngineType.VLLM
    """Which engine it is."""
    image: Image | None = None
    """Its image, as its makers publish it; the operator's default for type and version when left out. The connector is added when a
    pod starts."""
    version: Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9A-Za-z+-]+){0,4}$")] | None = None
    """Version in the image, such as 0.32.0, where its tag does not say it."""
    command: Arguments = ()
    """Command in place of the engine's own; the model's path, name, port and the connector's arguments are appended to it."""
    args: Arguments = ()
    """Arguments to append, such as --max-model-len=32768. Those of model, name, host, port and connector belong to the operator."""
    env: Env = ()
    """Environment variables of the engine."""
    resources: Resources = Resources()
    """What the engine asks for, such as limits nvidia.com/gpu: 1."""
    shared_memory: Annotated[str, Size("1Mi", "1Ti")] | None = None
    """Size that /dev/shm may grow to, by which several workers of one engine talk; 2Gi when left out. What is in it counts as memory
    of the engine's container."""
    tensor_parallel_size: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """Over how many accelerators each layer is split."""
    data_parallel_size: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """How many ranks with a cache of their own each replica has."""
    nodes_per_replica: Annotated[StrictInt, Field(ge=1, le=16)] = 1
    """Over how many pods, on different nodes, one replica is spread; over 1 needs the API of LeaderWorkerSet."""
    upgrade_policy: UpgradePolicy = UpgradePolicy.KEEP
    """What a newer operator may do to running engines. Keep: their pods stay as they are until this resource changes. Roll: they are
    restarted, a few at a time, for what the newer operator adds to pods."""

    RULES = (
        Rule(
            cel="!self.args.exists(arg, "
            + " || ".join(f"arg == '{name}' || arg.startsWith('{name}=')" for name in OWNED_ARGUMENTS)
            + ")",
            message=f"the operator sets {', '.join(OWNED_ARGUMENTS)} itself; leave them out of args",
            holds=lambda it: not any(_owned(argument) for argument in it.args),
            field=".args",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="self.tensorParallelSize % self.nodesPerReplica == 0",
            message="tensorParallelSize must be a multiple of nodesPerReplica",
            holds=lambda it: it.tensor_parallel_size % it.nodes_per_replica == 0,
            field=".nodesPerReplica",
        ),
    )


class MetricType(StrEnum):
    """Where a metric comes from."""

    CPU = "Cpu"
    POD = "Pod"
    EXTERNAL = "External"
    PROMETHEUS = "Prometheus"


_TARGET: Final = cel_quantity("self.target")


class Metric(Model):
    """A number that replicas should stay near to."""

    type: MetricType
    """Cpu: per cent of what is requested. Pod: a metric of each pod by custom.metrics.k8s.io. External: one by external.metrics.k8s.io.
    Prometheus: a query, by KEDA."""
    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_:][A-Za-z0-9_:|.-]*$")] | None = None
    """Name of the metric, for Pod and External."""
    selector: Labels = EMPTY
    """Labels of the metric, for External."""
    query: Annotated[str, Field(min_length=1, max_length=2_048)] | None = None
    """The query, for Prometheus; its answer is one number."""
    target: ResourceQuantity
    """The number a replica should have: per cent for Cpu, else the average over replicas."""

    RULES = (
        Rule(
            cel=f"self.type != 'Cpu' || ({cel_digits('self.target')}"
            f" && {_TARGET}.compareTo(quantity('1')) >= 0 && {_TARGET}.compareTo(quantity('9999')) <= 0"
            " && (type(self.target) == int || !self.target.startsWith('0')))",
            message="for type Cpu target is a whole number of per cent, such as 80",
            holds=lambda it: it.type != "Cpu" or (it.target.isdigit() and it.target[0] != "0" and len(it.target) <= 4),
            field=".target",
        ),
        Rule(
            cel=f"{_TARGET}.isGreaterThan(quantity('0'))",
            message="target must be over 0",
            holds=lambda it: parse_quantity(it.target) > 0,
            field=".target",
        ),
        Rule(
            cel="has(self.name) == (self.type in ['Pod', 'External'])",
            message="name goes with types Pod and External, and only with them",
            holds=lambda it: (it.name is not None) == (it.type in ("Pod", "External")),
            field=".name",
        ),
        Rule(
            cel="has(self.query) == (self.type == 'Prometheus')",
            message="query goes with type Prometheus, and only with it",
            holds=lambda it: (it.query is not None) == (it.type == "Prometheus"),
            field=".query",
        ),
        Rule(
            cel="!has(self.selector) || self.selector.size() == 0 || self.type == 'External'",
            message="selector goes with type External",
            holds=lambda it: not it.selector or it.type == "External",
            field=".selector",
        ),
    )


class Keda(Model):
    """Scaling by KEDA instead of a HorizontalPodAutoscaler of ours."""

    prometheus_address: Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s]+$")] | None = None
    """URL of Prometheus, for metrics of type Prometheus."""
    authentication_ref: LocalRef | None = None
    """A TriggerAuthentication for Prometheus."""
    polling_seconds: Annotated[Seconds, Field(ge=1)] = 30
    """How often metrics are read."""
    cooldown_seconds: Seconds = 300
    """How long nothing is asked for before the last replica goes (minReplicas 0)."""


class Autoscaling(Model):
    """How the number of replicas follows the load. It is then the autoscaler's to write, and `replicas` only where it begins."""

    min_replicas: Replicas = 1
    """Never fewer; 0 needs KEDA."""
    max_replicas: Annotated[StrictInt, Field(ge=1, le=1_024)]
    """Never more."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, max_length=METRICS_MAX), ListType("atomic")]
    """What is looked at; the one that asks for most replicas wins."""
    scale_up_stabilization_seconds: Annotated[Seconds, Field(le=3_600)] = 0
    """Scales up only when it was asked for all this time."""
    scale_down_stabilization_seconds: Annotated[Seconds, Field(le=3_600)] = 300
    """Scales down only when it was asked for all this time: a replica that goes takes its cache along."""
    keda: Keda | None = None
    """By KEDA; by a HorizontalPodAutoscaler when left out."""

    RULES = (
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            message="minReplicas must not be over maxReplicas",
            holds=lambda it: it.min_replicas <= it.max_replicas,
            field=".minReplicas",
        ),
        Rule(
            cel="self.minReplicas > 0 || has(self.keda)",
            message="minReplicas 0 needs keda, since a HorizontalPodAutoscaler keeps at least 1",
            holds=lambda it: it.min_replicas > 0 or it.keda is not None,
            field=".minReplicas",
        ),
        Rule(
            cel="has(self.keda) ? self.metrics.all(metric, metric.type in ['Cpu', 'Prometheus'])"
            " : self.metrics.all(metric, metric.type != 'Prometheus')",
            message="with keda metrics are of type Cpu or Prometheus; without it of type Cpu, Pod or External",
            holds=lambda it: all(
                metric.type in (("Cpu", "Prometheus") if it.keda else ("Cpu", "Pod", "External"))
                for metric in it.metrics
            ),
            field=".metrics",
        ),
        Rule(
            cel="!has(self.keda) || has(self.keda.prometheusAddress)"
            " || self.metrics.all(metric, metric.type != 'Prometheus')",
            message="metrics of type Prometheus need keda.prometheusAddress",
            holds=lambda it: (
                it.keda is None
                or it.keda.prometheus_address is not None
                or all(metric.type != "Prometheus" for metric in it.metrics)
            ),
            field=".keda",
        ),
    )


class Role(Model):
    """Engines that do one part of the work."""

    replicas: Replicas = 1
    """How many; the InferenceRole's own `scale` changes it."""
    autoscaling: Autoscaling | None = None
    """How their number follows the load."""
    args: Arguments = ()
    """Arguments to append to those of `engine`."""
    env: Env = ()
    """Environment variables beside those of `engine`; equal names win over them."""
    resources: Resources | None = None
    """What an engine of this role asks for, in place of those of `engine`."""
    tensor_parallel_size: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    """In place of that of `engine`."""
    node_selector: Labels | None = None
    """Labels that a node must have, in place of those of podTemplate: prefill and decode may want different accelerators."""
    tolerations: Tolerations | None = None
    """Taints of nodes that the pods put up with, in place of those of podTemplate."""

    def pods(self, template: PodTemplate) -> PodTemplate:
        """The deployment's podTemplate as this role has it."""
        own = {"node_selector": self.node_selector, "tolerations": self.tolerations}
        return template.model_copy(update={name: value for name, value in own.items() if value is not None})


class Roles(Model):
    """Prefill and decode by different engines; the pool carries the KV from one to the other."""

    prefill: Role
    """Engines that read prompts."""
    decode: Role
    """Engines that write answers."""
