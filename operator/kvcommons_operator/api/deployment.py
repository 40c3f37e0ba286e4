"""InferenceDeployment: engines that serve one model behind a router, with their KV in a pool."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from kvcommons_operator.api.base import Model, Rule, Transition
from kvcommons_operator.api.common import AbsolutePath, Label, ObjectName, Replicas, Seconds, StrictInt
from kvcommons_operator.api.engine import Autoscaling, Engine, Roles
from kvcommons_operator.api.model_source import ServedModel
from kvcommons_operator.api.pods import PodTemplate
from kvcommons_operator.api.quantities import text_of_int
from kvcommons_operator.api.routing import GatewaySpec, Routing, ServiceSpec
from kvcommons_operator.api.shared import Monitoring, NetworkAccess

IntOrPercent = Annotated[
    str,
    Field(
        max_length=4, pattern=r"^([0-9]{1,4}|[0-9]{1,2}%|100%)$", json_schema_extra={"x-kubernetes-int-or-string": True}
    ),
    BeforeValidator(text_of_int),
]
"""A number of pods, or a share of them: 1, 25%. `count_or_share` gives it as Kubernetes wants it."""


def count_or_share(value: str) -> int | str:
    """An IntOrPercent as Kubernetes wants it: 1 or "25%"."""
    return value if value.endswith("%") else int(value)


class PoolRef(Model):
    """The pool that keeps these engines' KV."""

    name: ObjectName
    """Name of the KVCachePool."""
    namespace: Label | None = None
    """Its namespace; this resource's own when left out. Another one must be allowed by the pool's tenancy.allowedNamespaces, and the
    router and its Service then live there. It can't be changed."""


class Probe(Model):
    """How the kubelet asks a container how it is; our own values for what is left out."""

    path: AbsolutePath | None = None
    """Path that is asked for; /health when left out."""
    initial_delay_seconds: Annotated[Seconds, Field(le=3_600)] | None = None
    """How long after its start it is first asked."""
    period_seconds: Annotated[Seconds, Field(ge=1, le=3_600)] | None = None
    """How often it is asked."""
    timeout_seconds: Annotated[Seconds, Field(ge=1, le=3_600)] | None = None
    """How long an answer may take."""
    failure_threshold: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    """After how many failures in a row it counts as failed."""


class Probes(Model):
    """How the kubelet asks an engine how it is."""

    startup: Probe = Probe()
    """Until it first succeeds the others wait; periodSeconds times failureThreshold is how long the model may take to load."""
    readiness: Probe = Probe()
    """Whether it gets requests."""
    liveness: Probe = Probe()
    """Whether it is restarted."""


class Disruption(Model):
    """How many engines may be away for drains of nodes; at most one of the two."""

    max_unavailable: IntOrPercent | None = None
    """How many may be away: a number, or a share such as 25%. 1 when both are left out."""
    min_available: IntOrPercent | None = None
    """How many must stay."""

    RULES = (
        Rule(
            cel="!(has(self.maxUnavailable) && has(self.minAvailable))",
            message="give maxUnavailable or minAvailable, not both",
            holds=lambda it: it.max_unavailable is None or it.min_available is None,
        ),
    )


class Rollout(Model):
    """How a change reaches engines."""

    max_surge: IntOrPercent = "1"
    """How many engines over their number a change may start; they need accelerators that are free. With 0, old ones go first."""
    max_unavailable: IntOrPercent = "0"
    """How many engines under their number a change may leave."""

    RULES = (
        Rule(
            cel="!(string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])",
            message="maxSurge and maxUnavailable can't both be 0; no engine could ever be replaced",
            holds=lambda it: not (it.max_surge in ("0", "0%") and it.max_unavailable in ("0", "0%")),
        ),
    )


class InferenceDeploymentSpec(Model):
    """What should be served, and how."""

    model: ServedModel
    """The model that is served."""
    engine: Engine = Engine()
    """The inference engine and what it needs."""
    replicas: Replicas = 1
    """How many engines, each with prefill and decode; `kubectl scale` changes it. With autoscaling, where that begins; with roles it
    stays 1, since each role has its own."""
    autoscaling: Autoscaling | None = None
    """How the number of engines follows the load."""
    roles: Roles | None = None
    """Prefill and decode by different engines. It can't be added or taken away later."""
    pool_ref: PoolRef | None = None
    """The pool that keeps these engines' KV; without it every engine has only its own."""
    routing: Routing = Routing()
    """The router in front of the engines."""
    service: ServiceSpec = ServiceSpec()
    """The Service in front of the routers."""
    gateway: GatewaySpec | None = None
    """Ways in through the Gateway API."""
    pod_template: PodTemplate = PodTemplate()
    """Overrides for engines' pods."""
    probes: Probes = Probes()
    """How the kubelet asks an engine how it is."""
    disruption: Disruption = Disruption()
    """How many engines may be away for drains of nodes."""
    rollout: Rollout = Rollout()
    """How a change reaches engines."""
    drain_seconds: Annotated[Seconds, Field(le=3_600)] = 120
    """How long an engine that goes may take to finish its answers; it gets no new requests meanwhile."""
    monitoring: Monitoring = Monitoring()
    """What is made for Prometheus."""
    network_policy: NetworkAccess = NetworkAccess()
    """Who may connect to the engines besides the router."""

    RULES = (
        Rule(
            cel="!has(self.roles) || self.replicas == 1",
            message="with roles leave `replicas` out: each role has its own; scale the InferenceRoles instead",
            holds=lambda it: it.roles is None or it.replicas == 1,
            field=".replicas",
        ),
        Rule(
            cel="!has(self.roles) || !has(self.autoscaling)",
            message="with roles leave `autoscaling` out: each role has its own",
            holds=lambda it: it.roles is None or it.autoscaling is None,
            field=".autoscaling",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="!has(self.roles) || has(self.poolRef)",
            message="roles need poolRef: the pool carries the KV from prefill to decode",
            holds=lambda it: it.roles is None or it.pool_ref is not None,
            field=".poolRef",
            reason="FieldValueRequired",
        ),
    )
    TRANSITIONS = (
        Transition(
            # One that is left out means this resource's own, which no rule can know: the operator judges those.
            cel="!has(self.poolRef) || !has(self.poolRef.__namespace__) || !has(oldSelf.poolRef)"
            " || !has(oldSelf.poolRef.__namespace__) || self.poolRef.__namespace__ == oldSelf.poolRef.__namespace__",
            message="poolRef.namespace can't be changed, since the router's Service lives there; create another InferenceDeployment "
            "beside this one and move clients to it",
            holds=lambda old, new: "" in (was := _pool_namespace(old), now := _pool_namespace(new)) or was == now,
            field=".poolRef",
        ),
        Transition(
            cel="has(self.roles) == has(oldSelf.roles)",
            message="roles can't be added or taken away; create another InferenceDeployment beside this one and move clients to it",
            holds=lambda old, new: (old.roles is None) == (new.roles is None),
            field=".roles",
        ),
    )


def _pool_namespace(spec: InferenceDeploymentSpec) -> str:
    return (spec.pool_ref.namespace or "") if spec.pool_ref else ""
