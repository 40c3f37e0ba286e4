"""What an InferenceDeployment needs done: its children in order, whose pool it may use, its end, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from kvcommons_operator import conditions, deployment_status, names, references, role_status, rollout
from kvcommons_operator.api import InferenceDeployment, InvalidResourceError, parse_deployment, refused, unbuilt
from kvcommons_operator.build import engine, gateway, monitoring, pinning, policies, router, scaling, secrets, services
from kvcommons_operator.build.deployment import AGGREGATED, Deployment, Group
from kvcommons_operator.build.meta import Owner
from kvcommons_operator.naming import Naming
from kvcommons_operator.observed import Api, DeploymentObserved, Manifest, Ref
from kvcommons_operator.outcome import Finalizer, Plan, PodAction
from kvcommons_operator.plan_pools import missing_api, missing_text, unwanted

DELETE_SECONDS: Final = 2.0
OPTIONAL_GROUPS: Final = (
    "monitoring.coreos.com",
    "keda.sh",
    "gateway.networking.k8s.io",
    "inference.networking.k8s.io",
    "leaderworkerset.x-k8s.io",
)
NEEDED_KINDS: Final = frozenset({"LeaderWorkerSet", "ScaledObject", "HTTPRoute", "InferencePool"})
"""Without them the deployment is not what was asked for; without a monitor it is."""


def plan(resource: Manifest, observed: DeploymentObserved) -> Plan:
    """What an InferenceDeployment needs done now."""
    if "deletionTimestamp" in resource["metadata"]:
        return _plan_deletion(resource, observed)
    foreign = _foreign(resource, observed)
    keep = Finalizer.KEEP if foreign else Finalizer.DROP
    try:
        parsed = parse_deployment(resource)
    except InvalidResourceError as error:
        return _refused(
            resource, observed, "InvalidSpec", conditions.listed([str(problem) for problem in error.problems]), keep
        )
    gaps = refused(parsed.spec)
    if gaps:
        message = conditions.listed([f"{gap.field}: {gap.message}" for gap in gaps])
        return _refused(resource, observed, gaps[0].reason, message, keep)
    return _plan_wanted(resource, parsed, observed, keep)


def _plan_wanted(
    resource: Manifest, parsed: InferenceDeployment, observed: DeploymentObserved, keep: Finalizer
) -> Plan:
    deployment = Deployment(owner=Owner.of(resource), spec=parsed.spec, install=observed.install)
    reference = references.resolve(deployment.owner, parsed.spec.pool_ref, observed, parsed.spec)
    moved = _moved(replace(deployment, pool=reference.pool), observed) if reference.problem is None else ""
    if moved:
        return _refused(resource, observed, "PoolNamespaceChanged", moved, keep)
    notes = [f"{gap.field}: {gap.message}" for gap in unbuilt(parsed.spec)]
    if reference.problem is not None:
        # Nothing is changed: what runs goes on, and nothing is begun without the pool that it should use.
        view = deployment_status.View(
            deployment=deployment,
            observed=observed,
            notes=tuple(notes),
            naming=_naming(resource, observed, deployment),
            blocked=True,
        )
        found = deployment_status.judge(view, reference.problem)
        return Plan(
            status=deployment_status.status(view, found, resource),
            events=tuple(conditions.events(found, resource)),
            finalizer=keep,
            puzzles=view.puzzles,
        )
    deployment = replace(deployment, pool=reference.pool, role_replicas=_role_replicas(deployment, observed))
    wanted = children(deployment, observed)
    notes += [missing_text(api) for api in wanted.missing]
    view = deployment_status.View(
        deployment=deployment, observed=observed, notes=tuple(notes), naming=_naming(resource, observed, deployment)
    )
    needed = [api for api in wanted.missing if api.kind in NEEDED_KINDS]
    problem = conditions.no(conditions.RESOLVED_REFS, "ApiMissing", missing_text(needed[0])) if needed else None
    found = deployment_status.judge(view, problem)
    return Plan(
        apply=role_status.told(wanted.manifests, deployment, view.engines, observed.children, observed.now),
        delete=unwanted(observed.children, wanted.whole),
        actions=_deletion_costs(deployment, observed),
        status=deployment_status.status(view, found, resource),
        events=(*conditions.events(found, resource), *(missing_api(api) for api in wanted.missing)),
        finalizer=Finalizer.KEEP if deployment.is_foreign else keep,
        puzzles=view.puzzles,
    )


def _naming(resource: Manifest, observed: DeploymentObserved, deployment: Deployment) -> Naming:
    """Its own fields, and those of its pool, whose Secrets routers and sidecars mount."""
    found: list[tuple[str, Mapping[str, Any]]] = [("", resource.get("spec") or {})]
    if observed.pool is not None:
        metadata = observed.pool["metadata"]
        found.append((f"KVCachePool {metadata['namespace']}/{metadata['name']}", observed.pool.get("spec") or {}))
    made = {secrets.salt_name(deployment.owner)}
    if deployment.pool is not None:
        pool, index = deployment.pool, deployment.pool.managed_index()
        made |= {pool.keys_name, secrets.salt_name(pool.owner), *([index.auth_name] if index is not None else [])}
    return Naming(tuple(found), frozenset(made))


def _moved(deployment: Deployment, observed: DeploymentObserved) -> str:
    """What to do where another pool's namespace would take the routers elsewhere; empty where they stay. A namespace that is left out is
    the deployment's own, so that naming that one is no change."""
    there = sorted(
        {
            ref.namespace
            for ref, live in observed.children.items()
            if ref.kind == "Deployment" and (live["metadata"].get("labels") or {}).get(names.COMPONENT) == names.ROUTER
        }
    )
    if not there or deployment.router_namespace in there:
        return ""
    return (
        f"spec.poolRef.namespace: its routers and their Service are in namespace {there[0]} and can't move to {deployment.router_namespace}: "
        "set it back, or create another InferenceDeployment beside this one and move clients to it"
    )


@dataclass(frozen=True)
class Wanted:
    """The children of a deployment, and what was asked for and can't be made here."""

    manifests: tuple[Manifest, ...]
    missing: tuple[Api, ...]
    whole: tuple[Manifest, ...]
    """And those: an API that is away for a moment (an API server that begins) is no wish that nothing of it be left."""


def children(deployment: Deployment, observed: DeploymentObserved) -> Wanted:
    """All children, in the order in which they need each other."""
    found: list[Manifest] = [*services.build(deployment), *policies.engines(deployment)]
    if deployment.spec.roles is not None:
        found += [_role_object(deployment, group, observed) for group in deployment.groups]
    for group in deployment.groups:
        workload = _workload(deployment, group, observed)
        found += [policies.engine_budget(deployment, group), workload]
        found += scaling.autoscaler(deployment, group, workload)
    found += [*router.build(deployment), policies.router_budget(deployment)]
    found += [*gateway.http_route(deployment), *monitoring.deployment_monitors(deployment)]
    apis = {
        api for one in found if (api := Api(one["apiVersion"], one["kind"])) not in observed.apis and _optional(api)
    }
    made = tuple(one for one in found if Api(one["apiVersion"], one["kind"]) not in apis)
    return Wanted(made, tuple(sorted(apis)), tuple(found))


def _optional(api: Api) -> bool:
    return api.api_version.partition("/")[0] in OPTIONAL_GROUPS


def _role_object(deployment: Deployment, group: Group, observed: DeploymentObserved) -> Manifest:
    return scaling.role_object(deployment, group, observed.children.get(_role_ref(deployment, group)))


def _role_ref(deployment: Deployment, group: Group) -> Ref:
    return Ref(names.API_VERSION, names.ROLE_KIND, deployment.owner.namespace, deployment.group_name(group))


def _workload(deployment: Deployment, group: Group, observed: DeploymentObserved) -> Manifest:
    if deployment.spec.engine.nodes_per_replica > 1:
        fresh = engine.leader_worker_set(deployment, group)
        live = observed.children.get(Ref.of(fresh))
        parts = fresh["spec"]["leaderWorkerTemplate"]
        kept = pinning.template(deployment, group, parts | {"spec": {}}, live)
        pinned = {**fresh, "spec": {**fresh["spec"], "leaderWorkerTemplate": {**kept}}}
        pinned["spec"]["leaderWorkerTemplate"].pop("spec", None)
        marked = pinning.marked(pinned, deployment, group, kept)
        return scaling.with_replicas(marked, group, live)
    ref = Ref("apps/v1", "Deployment", deployment.owner.namespace, deployment.group_name(group))
    live = observed.children.get(ref)
    template = pinning.template(deployment, group, engine.pod_template(deployment, group), live)
    workload = pinning.marked(engine.workload(deployment, group, template), deployment, group, template)
    return scaling.with_replicas(workload, group, live)


def _role_replicas(deployment: Deployment, observed: DeploymentObserved) -> Mapping[str, int]:
    """What each role's own object says now, unless the deployment has said something newer."""
    found: dict[str, int] = {}
    for group in deployment.groups if deployment.spec.roles is not None else ():
        live = observed.children.get(_role_ref(deployment, group))
        annotations = (live or {}).get("metadata", {}).get("annotations") or {}
        if live is not None and annotations.get(names.REPLICAS_FROM) == str(group.replicas):
            found[group.role] = live["spec"].get("replicas", group.replicas)
    return found


def _deletion_costs(deployment: Deployment, observed: DeploymentObserved) -> tuple[PodAction, ...]:
    if deployment.pool is None:
        return ()
    actions: list[PodAction] = []
    for group in deployment.groups:
        pods = [pod for pod in observed.pods if pod.labels.get(names.ROLE_LABEL, AGGREGATED) == group.role]
        engines = [pod for pod in pods if pod.labels.get(names.COMPONENT) == names.ENGINE]
        warmth = {}
        for pod in engines:
            state = observed.nodes.get(pod.node if deployment.pool.per_node else pod.name)
            if state is not None:
                warmth[pod.name] = rollout.Warmth(hits=state.hits, chunks=state.chunks)
        actions += rollout.deletion_costs(engines, warmth)
    return tuple(actions)


def _refused(resource: Manifest, observed: DeploymentObserved, reason: str, message: str, finalizer: Finalizer) -> Plan:
    """Nothing is made and nothing is changed; what is there goes on as it was."""
    found = deployment_status.refusal(reason, message)
    return Plan(
        status=deployment_status.bare(found, resource, observed),
        events=tuple(conditions.events(found, resource)),
        finalizer=finalizer,
    )


# The end --------------------------------------------------------------------------------------------------------------


def _foreign(resource: Manifest, observed: DeploymentObserved) -> list[Ref]:
    """Children in other namespaces, which no owner reference ties to the deployment. Routers before what they stand on."""
    own = resource["metadata"]["namespace"]
    refs = [ref for ref in observed.children if ref.namespace != own]
    return sorted(refs, key=lambda ref: (ref.kind != "Deployment", ref))


def _plan_deletion(resource: Manifest, observed: DeploymentObserved) -> Plan:
    """Nothing is created any more. What the garbage collector does not reach goes first; then the deployment."""
    foreign = _foreign(resource, observed)
    found = deployment_status.deletion(observed)
    return Plan(
        delete=tuple(ref for ref in foreign if "deletionTimestamp" not in observed.children[ref]["metadata"]),
        status=deployment_status.bare(found, resource, observed),
        finalizer=Finalizer.KEEP if foreign else Finalizer.DROP,
        requeue_seconds=DELETE_SECONDS,
    )
