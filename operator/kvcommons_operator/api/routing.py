"""The router in front of engines, and how clients reach it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import (
    EMPTY,
    Annotations,
    FailureMode,
    HostName,
    Image,
    Label,
    Labels,
    ListType,
    ObjectName,
    Percent,
    Port,
    QualifiedName,
    Replicas,
    Seconds,
    SecretKeyRef,
    StrictInt,
)
from kvcommons_operator.api.pods import PodOverrides, Resources
from kvcommons_operator.api.quantities import Size
from kvcommons_operator.api.shared import LogLevel

Microseconds = Annotated[StrictInt, Field(ge=0, le=60_000_000)]
Many = Annotated[StrictInt, Field(ge=1, le=1_000_000)]


class Policy(StrEnum):
    """How a replica is chosen."""

    COST = "cost"
    ROUND_ROBIN = "roundRobin"
    LEAST_LOAD = "leastLoad"
    PREFIX_HASH = "prefixHash"


class Weights(Model):
    """What the cost of a replica is made of, where it is not learnt; the router's own values for what is left out."""

    engine_credit_percent: Percent | None = None
    """How much of the prefill a hit in the engine's own cache saves."""
    memory_credit_percent: Percent | None = None
    """How much a hit in the memory of the engine's cache node saves."""
    disk_credit_percent: Percent | None = None
    """How much a hit on that node's disk saves."""
    peer_credit_percent: Percent | None = None
    """How much a hit on another cache node saves."""
    decode_microseconds: Microseconds | None = None
    """What each request that a replica decodes costs another one."""


class RouterLimits(Model):
    """What one router bears; beyond it clients get 429 or 503 with Retry-After. The router's own values for what is left out."""

    requests_max: Many | None = None
    """Requests under way in one process."""
    tenant_requests_max: Many | None = None
    """Requests of one tenant under way in one process."""
    connections_max: Many | None = None
    """Connections of clients to one process."""
    body_bytes_max: Annotated[str, Size("1Ki", "1Gi")] | None = None
    """Size of a request's body."""
    first_byte_seconds: Annotated[Seconds, Field(ge=1)] | None = None
    """How long an engine may take until it begins to answer."""
    between_bytes_seconds: Annotated[Seconds, Field(ge=1)] | None = None
    """How long an engine may fall silent in an answer."""
    attempts_max: Annotated[StrictInt, Field(ge=1, le=16)] | None = None
    """Replicas that are tried for one request, all before the first byte of an answer."""


class Routing(Model):
    """The router: OpenAI's API for clients, which sends each request to the replica that has most of it cached."""

    replicas: Replicas = 2
    """How many router pods; two, so that one may go."""
    image: Image | None = None
    """Image of the router; the one of the operator's own version when left out."""
    workers: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """Processes in each pod, one a core."""
    policy: Policy = Policy.COST
    """cost: the replica that will begin to answer first, by what it has cached and its load. roundRobin: in turn. leastLoad: the least
    busy. prefixHash: the same beginning to the same replica."""
    weights: Weights = Weights()
    """What the cost is made of, where it is not learnt."""
    tenant_keys_secret_ref: SecretKeyRef | None = None
    """Key of a Secret with the router's file of API keys and their tenants; without it everyone may ask, as one tenant. The Secret is in
    the namespace where the router runs: the pool's."""
    limits: RouterLimits = RouterLimits()
    """What one router bears."""
    failure_mode: FailureMode = FailureMode.FAIL_OPEN
    """What becomes of requests while the index is away. FailOpen: routed by what the router itself remembers and by load. FailClosed:
    answered 503."""
    resources: Resources = Resources()
    """What a router pod asks for."""
    log_level: LogLevel = LogLevel.INFO
    """How much routers say."""
    pod_template: PodOverrides = PodOverrides()
    """Overrides for router pods."""


class ServiceType(StrEnum):
    """How a Service is reached."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


class ServiceSpec(Model):
    """The Service in front of the routers."""

    type: ServiceType = ServiceType.CLUSTER_IP
    """How it is reached: inside the cluster, by a port of every node, or by a load balancer."""
    port: Port = 8_000
    """Port of the Service."""
    node_port: Annotated[StrictInt, Field(ge=1, le=65_535)] | None = None
    """Port of the nodes for NodePort and LoadBalancer; Kubernetes picks one when left out."""
    load_balancer_class: QualifiedName | None = None
    """Who makes the load balancer."""
    annotations: Annotations = EMPTY
    """Annotations, such as those for a cloud's load balancer."""

    RULES = (
        Rule(
            cel="!has(self.nodePort) || self.type != 'ClusterIP'",
            message="nodePort goes with type NodePort or LoadBalancer",
            holds=lambda it: it.node_port is None or it.type != "ClusterIP",
            field=".nodePort",
        ),
        Rule(
            cel="!has(self.loadBalancerClass) || self.type == 'LoadBalancer'",
            message="loadBalancerClass goes with type LoadBalancer",
            holds=lambda it: it.load_balancer_class is None or it.type == "LoadBalancer",
            field=".loadBalancerClass",
        ),
    )


class ParentRef(Model):
    """A Gateway that the route is attached to."""

    name: ObjectName
    """Name of the Gateway."""
    namespace: Label | None = None
    """Its namespace; the route's own when left out."""
    section_name: ObjectName | None = None
    """Name of its listener; all when left out."""
    port: Port | None = None
    """Port of its listener; all when left out."""


class HttpRoute(Model):
    """An HTTPRoute of the Gateway API to the routers."""

    parent_refs: Annotated[tuple[ParentRef, ...], Field(min_length=1, max_length=16), ListType("atomic")]
    """Gateways that the route is attached to."""
    hostnames: Annotated[tuple[HostName, ...], Field(max_length=16), ListType("set")] = ()
    """Host names that are meant; all when empty."""
    path_prefix: Annotated[
        str, Field(min_length=1, max_length=256, pattern=r"^/([A-Za-z0-9_~-][A-Za-z0-9._~-]*/?)*$")
    ] = "/"
    """Paths that are meant begin with it."""
    labels: Labels = EMPTY
    """Labels of the route."""
    annotations: Annotations = EMPTY
    """Annotations of the route."""


class InferencePoolSpec(Model):
    """An InferencePool of the Gateway API's inference extension, whose endpoint picker is ours."""

    failure_mode: FailureMode = FailureMode.FAIL_OPEN
    """What the gateway does while the picker is away."""
    port: Port = 9_002
    """Port of the endpoint picker."""


class GatewaySpec(Model):
    """Ways in through the Gateway API, where it is installed."""

    http_route: HttpRoute | None = None
    """An HTTPRoute to the routers."""
    inference_pool: InferencePoolSpec | None = None
    """An InferencePool of the engines."""

    RULES = (
        Rule(
            cel="has(self.httpRoute) || has(self.inferencePool)",
            message="give httpRoute or inferencePool, or leave gateway out",
            holds=lambda it: it.http_route is not None or it.inference_pool is not None,
        ),
    )
