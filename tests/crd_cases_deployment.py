"""Every rule of InferenceDeployment that KVCachePool has not."""

from __future__ import annotations

from typing import Any, Final

from crd_case import COMMIT, CPU, QUERY, ROLES, Case, Spec, merged
from kvcommons_operator.api import InferenceDeployment


def _roles(**fields: Any) -> Spec:
    return {"roles": ROLES, "poolRef": {"name": "p"}, **fields}


def _scaling(**fields: Any) -> Spec:
    return {"autoscaling": {"maxReplicas": 4, "metrics": [CPU], **fields}}


def _metric(**fields: Any) -> Spec:
    return _scaling(metrics=[{"target": 1, **fields}])


def _volume(**fields: Any) -> Spec:
    return {"podTemplate": {"volumes": [{"name": "data", **fields}]}}


def _mount(path: str, name: str = "data") -> Spec:
    return merged(_volume(emptyDir={}), {"podTemplate": {"volumeMounts": [{"name": name, "mountPath": path}]}})


def _source(**fields: Any) -> Spec:
    return {"model": {"source": {"pvc": None, **fields}}}


HUB: Final = {"model": {"revision": "v1.0.0-final", "source": {"pvc": None, "hub": {"repo": "a/b"}}}}

DEPLOYMENT_CASES: Final = tuple(
    Case(message, bad, good, field, InferenceDeployment)
    for message, bad, good, field in (
        ("with roles leave `replicas` out", _roles(replicas=2), _roles(), "spec.replicas"),
        ("with roles leave `autoscaling` out", _roles(**_scaling()), _roles(), "spec.autoscaling"),
        ("roles need poolRef", {"roles": ROLES}, _roles(), "spec.poolRef"),
        (
            "source hub needs revision to be a commit",
            HUB,
            merged(HUB, {"model": {"revision": COMMIT}}),
            "spec.model.revision",
        ),
        (
            "revision must name weights that never change",
            {"model": {"revision": "main"}},
            {"model": {"revision": "sha256:abc"}},
            "spec.model.revision",
        ),
        (
            "revision must name weights that never change",
            {"model": {"revision": "default"}},
            {"model": {"revision": "sha256:abc"}},
            "spec.model.revision",
        ),
        ("give exactly one of pvc, image, hub", _source(), _source(local={"path": "/m"}), "spec.model.source"),
        (
            "the operator sets --model",
            {"engine": {"args": ["--x", "--port=1"]}},
            {"engine": {"args": ["--model-impl=vllm"]}},
            "spec.engine.args",
        ),
        (
            "tensorParallelSize must be a multiple",
            {"engine": {"tensorParallelSize": 3, "nodesPerReplica": 2}},
            {"engine": {"tensorParallelSize": 4, "nodesPerReplica": 2}},
            "spec.engine.nodesPerReplica",
        ),
        (
            "from 1Mi to 1Ti",
            {"engine": {"sharedMemory": "1"}},
            {"engine": {"sharedMemory": "8Gi"}},
            "spec.engine.sharedMemory",
        ),
        (
            "minReplicas must not be over",
            _scaling(minReplicas=5),
            _scaling(minReplicas=4),
            "spec.autoscaling.minReplicas",
        ),
        (
            "minReplicas 0 needs keda",
            _scaling(minReplicas=0),
            _scaling(minReplicas=0, keda={}),
            "spec.autoscaling.minReplicas",
        ),
        ("with keda metrics are of type", _scaling(metrics=[QUERY]), _scaling(keda={}), "spec.autoscaling.metrics"),
        (
            "metrics of type Prometheus need keda.prometheusAddress",
            _scaling(metrics=[QUERY], keda={}),
            _scaling(metrics=[QUERY], keda={"prometheusAddress": "http://p:9090"}),
            "spec.autoscaling.keda",
        ),
        (
            "name goes with types Pod",
            _metric(type="Pod"),
            _metric(type="Pod", name="n"),
            "spec.autoscaling.metrics[0].name",
        ),
        (
            "for type Cpu target is a whole number",
            _metric(type="Cpu", target="1k"),
            _metric(type="Cpu", target="80"),
            "spec.autoscaling.metrics[0].target",
        ),
        (
            "target must be over 0",
            _metric(type="Pod", name="n", target=0),
            _metric(type="Pod", name="n", target="500m"),
            "spec.autoscaling.metrics[0].target",
        ),
        (
            "query goes with type Prometheus",
            _metric(type="Cpu", query="up"),
            _metric(type="Cpu"),
            "spec.autoscaling.metrics[0].query",
        ),
        (
            "selector goes with type External",
            _metric(type="Pod", name="n", selector={"a": "b"}),
            _metric(type="External", name="n", selector={"a": "b"}),
            "spec.autoscaling.metrics[0].selector",
        ),
        (
            "from 1Ki to 1Gi",
            {"routing": {"limits": {"bodyBytesMax": "2Gi"}}},
            {"routing": {"limits": {"bodyBytesMax": "16Mi"}}},
            "spec.routing.limits.bodyBytesMax",
        ),
        (
            "nodePort goes with type",
            {"service": {"nodePort": 30000}},
            {"service": {"type": "NodePort", "nodePort": 30000}},
            "spec.service.nodePort",
        ),
        (
            "loadBalancerClass goes with type",
            {"service": {"loadBalancerClass": "x"}},
            {"service": {"type": "LoadBalancer", "loadBalancerClass": "x"}},
            "spec.service.loadBalancerClass",
        ),
        (
            "give httpRoute or inferencePool",
            {"gateway": {}},
            {"gateway": {"httpRoute": {"parentRefs": [{"name": "g"}]}}},
            "spec.gateway",
        ),
        (
            "every volumeMount names a volume",
            _mount("/data", "other"),
            _mount("/data"),
            "spec.podTemplate.volumeMounts",
        ),
        ("give exactly one source", _volume(), _volume(emptyDir={}), "spec.podTemplate.volumes[0]"),
        (
            "volume names that begin with kvcommons-",
            {"podTemplate": {"volumes": [{"name": "kvcommons-payload", "emptyDir": {}}]}},
            _volume(emptyDir={"medium": "Memory"}),
            "spec.podTemplate.volumes[0].name",
        ),
        (
            "from 1 to 1Pi",
            _volume(emptyDir={"sizeLimit": "0"}),
            _volume(emptyDir={"sizeLimit": "1Gi"}),
            "spec.podTemplate.volumes[0].emptyDir.sizeLimit",
        ),
        (
            "/kvcommons and /run/kvcommons belong",
            _mount("/run/kvcommons"),
            _mount("/kvcommons-data"),
            "spec.podTemplate.volumeMounts[0].mountPath",
        ),
        (
            "give maxUnavailable or minAvailable",
            {"disruption": {"maxUnavailable": 1, "minAvailable": "50%"}},
            {"disruption": {"minAvailable": "50%"}},
            "spec.disruption",
        ),
        (
            "maxSurge and maxUnavailable can't both be 0",
            {"rollout": {"maxSurge": 0}},
            {"rollout": {"maxSurge": 0, "maxUnavailable": "25%"}},
            "spec.rollout",
        ),
    )
)
