"""What is said about an InferenceDeployment. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from kvcommons_operator import conditions, names, role_status
from kvcommons_operator.build import payload
from kvcommons_operator.build.deployment import AGGREGATED, Deployment
from kvcommons_operator.conditions import Condition, no, unknown, yes
from kvcommons_operator.naming import NO_NAMING, Naming
from kvcommons_operator.observed import DeploymentObserved, Manifest, Pod
from kvcommons_operator.troubles import Puzzle, Trouble, puzzles, refused_pods, troubles

UNHEALTHY_MAX: Final = 16
WORKLOADS: Final = frozenset({"Deployment", "LeaderWorkerSet"})


@dataclass(frozen=True, kw_only=True)
class View:
    """A deployment that is accepted, and how it stands."""

    deployment: Deployment
    observed: DeploymentObserved
    notes: tuple[str, ...] = ()
    """What was asked for and is passed over."""
    naming: Naming = NO_NAMING
    """Fields that name what its pods need."""
    blocked: bool = False
    """Nothing is made and nothing is changed, for a reference that is not there or not permitted."""

    @property
    def engines(self) -> list[Pod]:
        """Engine pods that are not going."""
        return [pod for pod in of_component(self.observed, names.ENGINE) if not pod.deleting]

    @property
    def routers(self) -> list[Pod]:
        """Router pods that are not going."""
        return [pod for pod in of_component(self.observed, names.ROUTER) if not pod.deleting]

    @cached_property
    def troubles(self) -> list[tuple[Pod, Trouble]]:
        """Of engines and routers, what is not well."""
        return troubles([*self.engines, *self.routers], self.naming)

    def refused(self, *components: str) -> list[Trouble]:
        """Why workloads may not make their pods."""
        found = [refused_pods(live, (), self.naming) for one in components for live in self.workloads(one)]
        return [problem for problem in found if problem is not None]

    @property
    def puzzles(self) -> tuple[Puzzle, ...]:
        """What its Events may explain."""
        return puzzles([*self.engines, *self.routers])

    def workloads(self, component: str) -> list[Manifest]:
        """Live workloads of engines or of routers."""
        return [
            live
            for ref, live in sorted(self.observed.children.items())
            if ref.kind in WORKLOADS and (live["metadata"].get("labels") or {}).get(names.COMPONENT) == component
        ]


def of_component(observed: DeploymentObserved, component: str) -> list[Pod]:
    """Pods of engines or of routers."""
    return [pod for pod in observed.pods if pod.labels.get(names.COMPONENT) == component]


def ready(pods: Sequence[Pod]) -> list[Pod]:
    """Those that serve."""
    return [pod for pod in pods if pod.ready]


def judge(view: View, problem: Condition | None) -> list[Condition]:
    """All conditions of a deployment. `problem`: what it refers to and can't have, if so."""
    accepted = yes(conditions.ACCEPTED, "Accepted", ". ".join(view.notes) or "everything that is asked for is built")
    found = problem
    if found is None:
        told = [trouble for _, trouble in view.troubles]
        found = conditions.resolved_refs([*told, *view.refused(names.ENGINE, names.ROUTER)])
    available = _available(view)
    result = [accepted, found, _progressing(view, problem), available, conditions.ready([accepted, found, available])]
    if view.deployment.spec.pool_ref is not None:
        result.append(conditions.connector_loaded(view.engines, payload.CHECK_CONTAINER)[0])
    if view.deployment.spec.roles is not None:
        result.append(role_status.disaggregated(view.deployment, view.engines))
    return result


def _available(view: View) -> Condition:
    """A request that comes now is served: by a router that is ready, and an engine that it can reach."""
    kind = conditions.AVAILABLE
    engines, routers = ready(view.engines), ready(view.routers)
    for group in filter(role_status.indispensable, view.deployment.groups):
        mates = role_status.of_role(view.engines, group.role)
        who = "engine" if group.role == AGGREGATED else f"{group.role} engine"
        if not ready(mates):
            if group.replicas == 0 and not mates:
                return no(kind, "ScaledToZero", f"{who} has no replicas: scale it up to be served")
            return no(kind, "NoEngineReady", _none_ready(view, f"no {who} is ready", mates, names.ENGINE))
    if not routers:
        if view.deployment.spec.routing.replicas == 0:
            return no(kind, "ScaledToZero", "routing.replicas is 0: nobody takes requests")
        return no(kind, "NoRouterReady", _none_ready(view, "no router is ready", view.routers, names.ROUTER))
    if view.observed.routable == 0:
        return no(
            kind,
            "NothingRoutable",
            "engines are ready, and a router reaches none of them: see its logs and the NetworkPolicies",
        )
    told = f"{len(engines)} of {len(view.engines)} engines and {len(routers)} of {len(view.routers)} routers serve"
    return yes(kind, "Serving", told)


def _none_ready(view: View, what: str, pods: Sequence[Pod], component: str) -> str:
    problems = [problem.message for _, problem in troubles(pods, view.naming)]
    problems += [problem.message for problem in view.refused(component)]
    if problems:
        return f"{what}: {conditions.listed(conditions.unique(problems))}"
    if pods:
        return f"{what} yet: pods that are starting: {len(pods)}"
    return f"{what}: none is made, see ResolvedRefs" if view.blocked else f"{what}: there is no pod yet"


def _progressing(view: View, problem: Condition | None) -> Condition:
    kind = conditions.PROGRESSING
    engines = view.workloads(names.ENGINE)
    if problem is not None and not engines:
        return no(kind, problem.reason, f"no engine is made before this is well: {problem.message}")
    if problem is not None and view.blocked:
        return no(
            kind, problem.reason, f"what runs goes on, and nothing is changed before this is well: {problem.message}"
        )
    if not engines:
        return yes(kind, "Creating", "the engines are being made")
    workloads = [*engines, *view.workloads(names.ROUTER)]
    for live in workloads:
        name, status = live["metadata"]["name"], live.get("status") or {}
        told = {one["type"]: one for one in status.get("conditions") or ()}
        if told.get("Progressing", {}).get("reason") == "ProgressDeadlineExceeded":
            return no(kind, "RolloutStuck", f"{name}: {told['Progressing'].get('message', '')}")
    stuck = [problem for _, problem in view.troubles if problem.stuck] + view.refused(names.ENGINE, names.ROUTER)
    waiting = [text for live in workloads if (text := _behind(live))]
    if waiting and stuck:
        return no(kind, "RolloutStuck", conditions.listed(conditions.unique(problem.message for problem in stuck)))
    if waiting:
        return yes(kind, "RollingOut", conditions.listed(waiting))
    return no(kind, conditions.COMPLETE, "every pod is as the deployment says")


def _behind(live: Manifest) -> str:
    """What a workload has still to do; empty where it is done."""
    status, name = live.get("status") or {}, live["metadata"]["name"]
    wanted = (live.get("spec") or {}).get("replicas", 1)
    if status.get("observedGeneration", 0) < live["metadata"].get("generation", 0):
        return f"{name} has just changed"
    updated, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    serving = status.get("availableReplicas", status.get("readyReplicas", 0))
    if updated < wanted or total > updated or serving < wanted:
        return f"{name}: {updated} of {wanted} pods are as wished, {serving} serve, {max(0, total - updated)} old ones are left"
    return ""


# The status -----------------------------------------------------------------------------------------------------------


def status(view: View, found: list[Condition], resource: Manifest) -> dict[str, Any]:
    """The whole status of a deployment that is accepted."""
    deployment, engines = view.deployment, view.engines
    unhealthy = view.troubles
    updated = sum((live.get("status") or {}).get("updatedReplicas", 0) for live in view.workloads(names.ENGINE))
    told: dict[str, Any] = {
        **bare(found, resource, view.observed),
        "updatedReplicas": updated,
        "connectedReplicas": conditions.connector_loaded(ready(engines), payload.CHECK_CONTAINER)[1],
        "selector": role_status.selector(deployment),
        "unhealthyReplicas": [
            {"name": pod.name, "reason": problem.reason, "message": problem.message[:1024]}
            for pod, problem in unhealthy[:UNHEALTHY_MAX]
        ],
        "router": {
            "namespace": _router_namespace(view),
            "replicas": deployment.spec.routing.replicas,
            "readyReplicas": len(ready(view.routers)),
        },
        "url": deployment.url,
    }
    if deployment.spec.roles is not None:
        told["roles"] = role_status.counts(deployment, engines)
    return told


def _router_namespace(view: View) -> str:
    ref = view.deployment.spec.pool_ref
    return (ref.namespace if ref is not None else None) or view.deployment.owner.namespace


def bare(found: list[Condition], resource: Manifest, observed: DeploymentObserved) -> dict[str, Any]:
    """What can be said of any deployment: its conditions, and how many engines there are."""
    engines = [pod for pod in of_component(observed, names.ENGINE) if not pod.deleting]
    return {
        "observedGeneration": resource["metadata"].get("generation", 0),
        "conditions": conditions.rendered(found, resource, observed.now),
        "replicas": len(engines),
        "readyReplicas": len(ready(engines)),
    }


def refusal(reason: str, message: str) -> list[Condition]:
    """Conditions of a deployment that can't be accepted."""
    said = "nothing is changed before the deployment is accepted"
    return [
        no(conditions.ACCEPTED, reason, message),
        unknown(conditions.RESOLVED_REFS, "NotAccepted", said),
        no(conditions.PROGRESSING, "NotAccepted", said),
        unknown(conditions.AVAILABLE, "NotAccepted", said),
        no(conditions.READY, reason, message),
    ]


def deletion(observed: DeploymentObserved) -> list[Condition]:
    """Conditions of a deployment that is to go."""
    message = f"its routers go first; {len(of_component(observed, names.ENGINE))} engine pods are left"
    return [yes(conditions.PROGRESSING, "Deleting", message), no(conditions.READY, "Deleting", message)]
