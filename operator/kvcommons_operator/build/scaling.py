"""How many replicas, and who says so: exactly one writer.

Without autoscaling the operator writes the workload's `replicas` from the deployment (which `kubectl scale ifd` changes) or, with
roles, from the role's object (which `kubectl scale ifr` changes). With autoscaling the HorizontalPodAutoscaler, ours or KEDA's,
scales the workload itself and the operator writes nothing there: a `replicas` in the resource is only where that begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.engine import Autoscaling, Keda, Metric, MetricType
from kvcommons_operator.build.deployment import Deployment, Group
from kvcommons_operator.observed import Manifest

HPA_API: Final = "autoscaling/v2"
KEDA_API: Final = "keda.sh/v1alpha1"


def with_replicas(workload: Manifest, group: Group, live: Manifest | None) -> Manifest:
    """The workload with the number of replicas, where that is the operator's to write.

    Where an autoscaler takes over, the field is kept at its live value until the autoscaler has written it once: were it simply
    dropped, nobody would own it and the API server would set it to 1. That apply carries the live resourceVersion, so that it
    can't undo what the autoscaler writes meanwhile."""
    number: int | None = group.replicas
    version: str | None = None
    if group.autoscaling is not None:
        bounds = group.autoscaling
        number = min(max(group.replicas, bounds.min_replicas), bounds.max_replicas)
        if live is not None:
            number = None if others_own_replicas(live) else live.get("spec", {}).get("replicas", number)
            version = live["metadata"].get("resourceVersion") if number is not None else None
    if number is None:
        return workload
    found = {**workload, "spec": {"replicas": number, **workload["spec"]}}
    if version is not None:
        found["metadata"] = {**workload["metadata"], "resourceVersion": version}
    return found


def others_own_replicas(live: Manifest) -> bool:
    """Whether somebody besides the operator has written `spec.replicas`."""
    for entry in live["metadata"].get("managedFields") or ():
        owned = (entry.get("fieldsV1") or {}).get("f:spec") or {}
        if "f:replicas" in owned and entry.get("manager") != names.FIELD_MANAGER:
            return True
    return False


def autoscaler(deployment: Deployment, group: Group, workload: Manifest) -> list[Manifest]:
    """What scales a group's workload, if it is asked for."""
    own = group.autoscaling
    if own is None:
        return []
    target = {key: workload[key] for key in ("apiVersion", "kind")} | {"name": workload["metadata"]["name"]}
    return [
        _scaled_object(deployment, group, own, own.keda, target)
        if own.keda is not None
        else _hpa(deployment, group, own, target)
    ]


def _behavior(own: Autoscaling) -> dict[str, Any]:
    return {
        "scaleUp": {"stabilizationWindowSeconds": own.scale_up_stabilization_seconds},
        "scaleDown": {"stabilizationWindowSeconds": own.scale_down_stabilization_seconds},
    }


def _hpa(deployment: Deployment, group: Group, own: Autoscaling, target: Mapping[str, str]) -> Manifest:
    spec = {
        "scaleTargetRef": dict(target),
        "minReplicas": own.min_replicas,
        "maxReplicas": own.max_replicas,
        "metrics": [_hpa_metric(metric) for metric in own.metrics],
        "behavior": _behavior(own),
    }
    return deployment.engine_child(group.role).manifest(HPA_API, "HorizontalPodAutoscaler", {"spec": spec})


def _hpa_metric(metric: Metric) -> dict[str, Any]:
    if metric.type == MetricType.CPU:
        target = {"type": "Utilization", "averageUtilization": int(float(metric.target))}
        return {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    average = {"type": "AverageValue", "averageValue": metric.target}
    if metric.type == MetricType.POD:
        return {"type": "Pods", "pods": {"metric": {"name": metric.name}, "target": average}}
    named: dict[str, Any] = {"name": metric.name}
    if metric.selector:
        named["selector"] = {"matchLabels": dict(metric.selector)}
    return {"type": "External", "external": {"metric": named, "target": average}}


def _scaled_object(
    deployment: Deployment, group: Group, own: Autoscaling, keda: Keda, target: Mapping[str, str]
) -> Manifest:
    spec: dict[str, Any] = {
        "scaleTargetRef": dict(target),
        "minReplicaCount": own.min_replicas,
        "maxReplicaCount": own.max_replicas,
        "pollingInterval": keda.polling_seconds,
        "cooldownPeriod": keda.cooldown_seconds,
        "triggers": [_trigger(metric, keda) for metric in own.metrics],
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(own)}},
    }
    return deployment.engine_child(group.role).manifest(KEDA_API, "ScaledObject", {"spec": spec})


def _trigger(metric: Metric, keda: Keda) -> dict[str, Any]:
    if metric.type == MetricType.CPU:
        return {"type": "cpu", "metricType": "Utilization", "metadata": {"value": metric.target}}
    told = {"serverAddress": keda.prometheus_address or "", "query": metric.query or "", "threshold": metric.target}
    trigger: dict[str, Any] = {"type": "prometheus", "metadata": told}
    if keda.authentication_ref is not None:
        trigger["authenticationRef"] = {"name": keda.authentication_ref.name}
    return trigger


def role_object(deployment: Deployment, group: Group, live: Manifest | None) -> Manifest:
    """A role's own object, with a `scale` of its own.

    The newest wish wins: the number in the deployment when that was changed, else what the role was last scaled to."""
    wanted = {role.role: role for role in deployment.groups}[group.role]
    spec: dict[str, Any] = {"deploymentRef": {"name": deployment.owner.name}, "role": group.role}
    roles = deployment.spec.roles
    declared = (roles.prefill if group.role == "prefill" else roles.decode).replicas if roles else wanted.replicas
    written = (live or {}).get("metadata", {}).get("annotations", {}).get(names.REPLICAS_FROM)
    version: str | None = None
    if live is None or written != str(declared):
        spec["replicas"] = declared
    elif not others_own_replicas(live):
        spec["replicas"] = live.get("spec", {}).get("replicas", declared)
        version = live["metadata"].get("resourceVersion")
    manifest = deployment.engine_child(group.role, {names.ROLE_LABEL: group.role}).manifest(
        names.API_VERSION, names.ROLE_KIND, {"spec": spec}
    )
    manifest["metadata"]["annotations"] = {names.REPLICAS_FROM: str(declared)}
    if version is not None:
        manifest["metadata"]["resourceVersion"] = version
    return manifest
