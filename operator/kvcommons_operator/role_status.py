"""What is said about the roles of an InferenceDeployment, and of each role's own object. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvcommons_operator import conditions, names
from kvcommons_operator.api.role import RoleName
from kvcommons_operator.build.deployment import Deployment, Group
from kvcommons_operator.conditions import Condition, no, yes
from kvcommons_operator.observed import Manifest, Pod, Ref

FIRST_GENERATION = 1


def of_role(engines: Sequence[Pod], role: str) -> list[Pod]:
    """Engines of one role."""
    return [pod for pod in engines if pod.labels.get(names.ROLE_LABEL) == role]


def selector(deployment: Deployment, role: str | None = None) -> str:
    """What an autoscaler selects the engines' pods by."""
    labels = deployment.owner.selector(names.ENGINE)
    if role is not None:
        labels[names.ROLE_LABEL] = role
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def indispensable(group: Group) -> bool:
    """Without engines of this group nothing is served. Without prefill the engines that decode read prompts too."""
    return group.role != RoleName.PREFILL.value


def disaggregated(deployment: Deployment, engines: Sequence[Pod]) -> Condition:
    """Whether prompts are read by other engines than answers are written by."""
    kind = conditions.DISAGGREGATED
    ready = {group.role: [pod for pod in of_role(engines, group.role) if pod.ready] for group in deployment.groups}
    missing = [group for group in deployment.groups if not ready[group.role]]
    if not missing:
        told = " and ".join(f"{len(ready[group.role])} {group.role}" for group in deployment.groups)
        return yes(kind, "Disaggregated", f"{told} engines are ready")
    first = missing[-1]
    reason = "ScaledToZero" if first.replicas == 0 else f"No{first.role.capitalize()}Ready"
    if not indispensable(first):
        said = "decode engines read prompts too meanwhile, which makes the answers that they write slower"
        return no(kind, reason, f"no {first.role} engine is ready: {said}")
    return no(kind, reason, f"no {first.role} engine is ready: nothing is served")


def counts(deployment: Deployment, engines: Sequence[Pod]) -> list[dict[str, Any]]:
    """How many engines of each role there are, for the deployment's status."""
    return [{"name": group.role, **_replicas(of_role(engines, group.role))} for group in deployment.groups]


def _replicas(mates: Sequence[Pod]) -> dict[str, Any]:
    return {"replicas": len(mates), "readyReplicas": sum(pod.ready for pod in mates)}


def told(
    manifests: Sequence[Manifest],
    deployment: Deployment,
    engines: Sequence[Pod],
    live: Mapping[Ref, Manifest],
    now: str,
) -> tuple[Manifest, ...]:
    """The same manifests, with a status for the objects of roles."""
    groups = {group.role: group for group in deployment.groups}
    return tuple(
        {**one, "status": _status(deployment, groups[one["spec"]["role"]], engines, live.get(Ref.of(one)), now)}
        if one["kind"] == names.ROLE_KIND
        else one
        for one in manifests
    )


def _status(
    deployment: Deployment, group: Group, engines: Sequence[Pod], live: Manifest | None, now: str
) -> dict[str, Any]:
    mates = of_role(engines, group.role)
    available = _available(group, mates)
    known = live if live is not None else {"metadata": {"generation": FIRST_GENERATION}}
    return {
        "observedGeneration": known["metadata"].get("generation", FIRST_GENERATION),
        "conditions": conditions.rendered([available, conditions.ready([available])], known, now),
        **_replicas(mates),
        "selector": selector(deployment, group.role),
    }


def _available(group: Group, mates: Sequence[Pod]) -> Condition:
    serving = sum(pod.ready for pod in mates)
    if serving:
        return yes(conditions.AVAILABLE, "Serving", f"{serving} of {len(mates)} {group.role} engines serve")
    if group.replicas == 0 and not mates:
        return no(conditions.AVAILABLE, "ScaledToZero", f"{group.role} has no replicas")
    why = f"no {group.role} engine is ready; the InferenceDeployment says why"
    return no(conditions.AVAILABLE, "NoEngineReady", why)
