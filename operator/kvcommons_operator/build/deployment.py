"""An InferenceDeployment as builders see it: its specification, its pool, its roles, and where its parts stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.deployment import InferenceDeploymentSpec
from kvcommons_operator.api.engine import Arguments, Autoscaling
from kvcommons_operator.api.pods import Env, PodTemplate, Resources
from kvcommons_operator.api.role import RoleName
from kvcommons_operator.build import secrets
from kvcommons_operator.build.meta import Child, Owner
from kvcommons_operator.build.pool import Pool
from kvcommons_operator.observed import Install

AGGREGATED: Final = "engine"
"""Engines that do both; the other roles are prefill and decode."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Engines of one role: one workload, one number of replicas."""

    role: str
    """engine, prefill or decode."""
    replicas: int
    autoscaling: Autoscaling | None
    args: Arguments
    env: Env
    resources: Resources
    tensor_parallel_size: int
    template: PodTemplate


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One InferenceDeployment."""

    owner: Owner
    spec: InferenceDeploymentSpec
    install: Install
    pool: Pool | None = None
    """The pool that it uses, if it names one that it may use."""
    role_replicas: Mapping[str, int] = field(default_factory=dict)
    """By role: what the role's own object says, where there is one."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """One group, or one of each role."""
        spec, engine = self.spec, self.spec.engine
        if spec.roles is None:
            whole = Group(
                role=AGGREGATED,
                replicas=spec.replicas,
                autoscaling=spec.autoscaling,
                args=engine.args,
                env=engine.env,
                resources=engine.resources,
                tensor_parallel_size=engine.tensor_parallel_size,
                template=spec.pod_template,
            )
            return (whole,)
        found = []
        for name, role in ((RoleName.PREFILL, spec.roles.prefill), (RoleName.DECODE, spec.roles.decode)):
            overridden = {variable.name for variable in role.env}
            group = Group(
                role=name.value,
                replicas=self.role_replicas.get(name.value, role.replicas),
                autoscaling=role.autoscaling,
                args=(*engine.args, *role.args),
                env=(*(variable for variable in engine.env if variable.name not in overridden), *role.env),
                resources=role.resources or engine.resources,
                tensor_parallel_size=role.tensor_parallel_size or engine.tensor_parallel_size,
                template=role.pods(spec.pod_template),
            )
            found.append(group)
        return tuple(found)

    @property
    def router_namespace(self) -> str:
        """Where the routers are: beside the pool, whose credentials and salts leave its namespace for nobody."""
        return self.pool.owner.namespace if self.pool is not None else self.owner.namespace

    @property
    def is_foreign(self) -> bool:
        """The pool, and so the router, is in another namespace."""
        return self.router_namespace != self.owner.namespace

    @property
    def router_base(self) -> str:
        """What names of the router's parts begin with; in another namespace two deployments of one name must not meet."""
        if not self.is_foreign:
            return self.owner.name
        mark = names.short_hash(self.owner.namespace, self.owner.name)
        return names.child(self.owner.name, mark, names.NAME_CHARACTERS_MAX)

    @property
    def service_name(self) -> str:
        """Of the Service that clients reach in the router's namespace."""
        return self.router_base

    @property
    def url(self) -> str:
        """Where clients inside the cluster reach it."""
        host = f"{self.owner.name}.{self.owner.namespace}.svc.{self.install.cluster_domain}"
        return f"http://{host}:{self.spec.service.port}/v1"

    @property
    def salt(self) -> tuple[str, str]:
        """(name, key) of the Secret that tenants' salts are made with, in the router's namespace."""
        return self.pool.salt if self.pool is not None else (secrets.salt_name(self.owner), secrets.SALT_SECRET)

    def group_name(self, group: Group) -> str:
        """Of the workload of a group."""
        return names.child(self.owner.name, group.role)

    def group_labels(self, group: Group) -> dict[str, str]:
        """Labels that every pod of a group has, and no other: what its workload selects."""
        return self.owner.selector(names.ENGINE, **{names.ROLE_LABEL: group.role})

    def engine_child(self, part: str, more: Mapping[str, str] | None = None) -> Child:
        """A child of the engines, in the deployment's own namespace."""
        return Child(
            owner=self.owner, component=names.ENGINE, name=names.child(self.owner.name, part), labels=more or {}
        )

    def router_child(self, part: str) -> Child:
        """A child of the router, wherever that is; without a part it has the router's own name."""
        name = names.child(self.router_base, part) if part else self.service_name
        return Child(
            owner=self.owner,
            component=names.ROUTER,
            name=name,
            namespace=self.router_namespace,
            labels=self.pool_labels(),
        )

    def pool_labels(self) -> dict[str, str]:
        """Labels that say which pool a part uses: network policies go by them."""
        if self.pool is None:
            return {}
        owner = self.pool.owner
        return {names.POOL_LABEL: names.label_value(owner.name), names.POOL_NAMESPACE_LABEL: owner.namespace}


def template_overrides(own: PodTemplate, selector: Mapping[str, str]) -> dict[str, Any]:
    """Where engines run, in the spelling of a pod's specification."""
    found: dict[str, Any] = {}
    if own.node_selector:
        found["nodeSelector"] = dict(own.node_selector)
    if own.tolerations:
        found["tolerations"] = [toleration.to_dict() for toleration in own.tolerations]
    if own.affinity is not None:
        found["affinity"] = own.affinity.to_dict()
    if own.scheduler_name is not None:
        found["schedulerName"] = own.scheduler_name
    if own.topology_spread_constraints:
        counted = {"labelSelector": {"matchLabels": dict(selector)}}
        found["topologySpreadConstraints"] = [
            {**counted, **constraint.to_dict()} for constraint in own.topology_spread_constraints
        ]
    return found
