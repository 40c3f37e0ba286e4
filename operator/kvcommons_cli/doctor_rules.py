"""What follows from what the API server and the nodes say. Pure: each rule gives findings with their remedy."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from kvcommons_cli.findings import Finding, note, ok, problem, warning
from kvcommons_cli.resources import VERSION, Condition, Manifest, NodeReport, Pod, Resource

KUBERNETES_MIN: Final = (1, 29)
INSTALL: Final = "install or upgrade the chart with crds.install, or: kubectl apply --server-side -k crds"
VERSION_LABEL: Final = "app.kubernetes.io/version"
RESTARTS_MANY: Final = 5
ENFORCE: Final = "pod-security.kubernetes.io/enforce"
WISHED: Final = ("Accepted", "ResolvedRefs", "Available", "Ready", "IndexConsistent", "ConnectorLoaded")
"""Conditions that should be True. Progressing is a matter of time."""
REMEDIES: Final = {
    "Accepted": "change the spec as the message says",
    "ResolvedRefs": "make what is missing, or change the reference",
    "Available": "see its pods below",
    "Ready": "see its other conditions and its pods",
    "IndexConsistent": "see the index' pods and the nodes; nodes tell the index again by themselves when they reach it",
    "ConnectorLoaded": "use an engine image that the payload fits (docs/vllm.md), or leave poolRef out",
}
WAITING: Final = {
    "CrashLoopBackOff": "kubectl logs -n {namespace} {pod} -c {container} --previous",
    "ImagePullBackOff": "see that the image's name is right and its registry lets the node in (imagePullSecrets)",
    "ErrImagePull": "see that the image's name is right and its registry lets the node in (imagePullSecrets)",
    "InvalidImageName": "mend the image's name",
    "CreateContainerConfigError": "make the Secret or ConfigMap that the message names",
    "CreateContainerError": "kubectl describe pod -n {namespace} {pod}",
    "RunContainerError": "kubectl describe pod -n {namespace} {pod}",
}


def server(described: str, version: Manifest) -> Finding:
    """The API server's own version."""
    text = str(version.get("gitVersion", "?"))
    numbers = tuple(int(re.sub(r"\D", "", str(version.get(part, ""))) or 0) for part in ("major", "minor"))
    if numbers < KUBERNETES_MIN:
        least = ".".join(map(str, KUBERNETES_MIN))
        return problem("cluster", f"{described} is Kubernetes {text}", f"upgrade it to {least} or newer")
    return ok("cluster", f"{described}, Kubernetes {text}")


def definition(name: str, found: Manifest | None) -> Finding:
    """A CustomResourceDefinition: there, of this version, and in force."""
    if found is None:
        return problem(name, "this kind is not installed", INSTALL)
    spec, metadata = found.get("spec") or {}, found.get("metadata") or {}
    served = [one.get("name") for one in spec.get("versions") or () if one.get("served")]
    if VERSION not in served:
        return problem(name, f"it serves {', '.join(map(str, served))}, not {VERSION}", INSTALL)
    for one in (found.get("status") or {}).get("conditions") or ():
        if one.get("type") in ("Established", "NamesAccepted") and one.get("status") != "True":
            return problem(name, f"{one.get('reason')}: {one.get('message')}", "kubectl describe crd " + name)
    mine, theirs = importlib.metadata.version("kvcommons"), (metadata.get("labels") or {}).get(VERSION_LABEL)
    if theirs not in (None, mine):
        return warning(name, f"it is of version {theirs}, this command of {mine}", INSTALL)
    return ok(name, f"{VERSION} is served")


def operator(pods: Sequence[Pod]) -> Iterator[Finding]:
    """Whether it runs."""
    if not pods:
        yield problem("operator", "no pod of it is here", "install the chart (docs/install.md)")
        return
    ready = [one for one in pods if one.ready and not one.deleting]
    if not ready:
        yield problem("operator", f"none of its {len(pods)} pods is ready", "see its pods below")
    elif len(ready) < len([one for one in pods if not one.deleting]):
        yield warning("operator", f"{len(ready)} of its {len(pods)} pods are ready", "see its pods below")
    else:
        yield ok(
            "operator", f"{len(ready)} of its pods are ready in {', '.join(sorted({one.namespace for one in ready}))}"
        )
    for one in pods:
        yield from pod(one)


def leader(namespace: str, lease: Manifest | None, now: datetime | None = None) -> Finding:
    """Who leads, and whether it was heard of lately."""
    spec = (lease or {}).get("spec") or {}
    holder = spec.get("holderIdentity")
    if not holder:
        return problem("operator", f"no leader has been elected in {namespace}", "kubectl logs of its pods say why")
    try:
        renewed = datetime.fromisoformat(str(spec.get("renewTime", "")))
    except ValueError:
        return warning("operator", f"{holder} leads, but since when is not known", "kubectl logs of its pods")
    silent = ((now or datetime.now(UTC)) - renewed).total_seconds()
    if silent > 2 * float(spec.get("leaseDurationSeconds") or 15):
        return problem(
            "operator", f"its leader {holder} was last heard of {silent:.0f} s ago", "kubectl logs of its pods say why"
        )
    return ok("operator", f"{holder} leads")


def conditions(one: Resource) -> Iterator[Finding]:
    """A pool's or a deployment's."""
    if not one.conditions:
        yield problem(
            one.shown, "the operator has not looked at it", "see that the operator runs and has this namespace"
        )
        return
    if one.deleting:
        kept = f"; it waits for {', '.join(one.finalizers)}" if one.finalizers else ""
        yield note(one.shown, f"is being deleted{kept}", "a pool goes when no InferenceDeployment uses it any more")
    bad = [known for kind in WISHED if (known := one.condition(kind)) is not None and known.status != "True"]
    for condition in _causes(bad):
        yield problem(one.shown, _told(condition), REMEDIES[condition.type])
    behind = [known.type for known in one.conditions if known.observed_generation < one.generation]
    if behind:
        yield warning(
            one.shown,
            f"its last change is not reflected in {', '.join(behind)}",
            "wait a moment; else see the operator's log",
        )
    tiers = one.condition("TiersHealthy")
    if tiers is not None and tiers.status == "False":
        yield warning(one.shown, _told(tiers), "see the disks that the message names: until then engines compute more")
    if not bad:
        yield ok(one.shown, "ready")


def _causes(bad: Sequence[Condition]) -> list[Condition]:
    """One cause is one finding. What is refused or missing is the cause of all else; what is not known while nothing serves follows from
    that; Ready and Available say nothing new where another condition says why."""
    first = [one for one in bad if one.type in ("Accepted", "ResolvedRefs") and one.status == "False"]
    if first:
        return first
    available = [one for one in bad if one.type == "Available" and one.status == "False"]
    deeper = [
        one for one in bad if one.type not in ("Ready", "Available") and not (available and one.status == "Unknown")
    ]
    return deeper or available or list(bad[-1:])


def _told(condition: Condition) -> str:
    word = "is not known" if condition.status == "Unknown" else "does not hold"
    return f"{condition.type} {word}: {condition.reason}: {condition.message}".rstrip(": ")


def pod(one: Pod) -> Iterator[Finding]:
    """Why a pod does not run."""
    if one.unschedulable:
        yield problem(one.shown, f"no node takes it: {one.unschedulable}", "make room, or change what it asks for")
    for container in one.containers:
        where = {"namespace": one.namespace, "pod": one.name, "container": container.name}
        why = f" (it ended by {container.ended})" if container.ended else ""
        said = f": {container.message.splitlines()[-1][:300]}" if container.message else ""
        if container.waiting in WAITING:
            remedy = WAITING[container.waiting].format(**where)
            if container.ended.startswith("OOMKilled"):
                remedy = "give it more memory: it needs the arena and some more"
            yield problem(one.shown, f"{container.name}: {container.waiting}{why}{said}", remedy)
        elif container.restarts >= RESTARTS_MANY:
            yield warning(
                one.shown,
                f"{container.name} has been restarted {container.restarts} times{why}",
                "kubectl logs -n {namespace} {pod} -c {container} --previous".format(**where),
            )


def pods(found: Sequence[Pod]) -> Iterator[Finding]:
    """Of all pods: what several of one workload say alike is one finding."""
    alike: dict[tuple[object, ...], list[Finding]] = {}
    for one in found:
        of = (one.namespace, one.component, one.deployment, one.pool)
        for finding in pod(one):
            alike.setdefault((*of, finding.level, finding.message), []).append(finding)
    for same in alike.values():
        more = f" and {len(same) - 1} more like it" if len(same) > 1 else ""
        yield replace(same[0], about=same[0].about + more)


def cache_node(one: Pod, report: NodeReport) -> Iterator[Finding]:
    """What a node says of itself."""
    if report.error:
        return
    about = f"cache node {one.namespace}/{one.name}"
    if not report.ready:
        yield problem(about, f"not ready: {report.reason}", f"kubectl logs -n {one.namespace} {one.name} -c cache-node")
    if report.held:
        yield note(about, report.index_detail, "it is about to be restarted; the next start joins again")
    elif report.index_state == "disconnected":
        yield problem(
            about,
            report.index_detail,
            "see that Redis runs, and that NetworkPolicies let its port through; nodes join by themselves",
        )
    elif report.ready:
        yield ok(about, report.index_detail or "ready")


def uses(deployment: Resource, pool: Resource) -> bool:
    """Whether its engines run beside this pool's nodes."""
    reference = deployment.spec.get("poolRef") or {}
    return (reference.get("namespace") or deployment.namespace, reference.get("name")) == (pool.namespace, pool.name)


def pod_security(pool: Resource, name: str, namespace: Manifest) -> Iterator[Finding]:
    """perNode mounts a directory of the machine, which only the level privileged allows."""
    level = ((namespace.get("metadata") or {}).get("labels") or {}).get(ENFORCE, "privileged")
    if pool.spec.get("placement", "sidecar") != "perNode" or level == "privileged":
        return
    yield problem(
        f"namespace {name}",
        f"it enforces PodSecurity level {level}, and {pool.shown} has placement perNode, which needs hostPath",
        f"kubectl label namespace {name} {ENFORCE}=privileged --overwrite, or use a pool with placement sidecar",
    )
