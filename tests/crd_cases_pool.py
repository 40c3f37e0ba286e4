"""Every rule of KVCachePool, and those of the parts that all kinds share."""

from __future__ import annotations

from typing import Any, Final

from crd_case import KEY, Case, Spec


def _tier(**fields: Any) -> Spec:
    return {"tiers": {"secondary": [{"type": "disk", "capacity": "1Gi", **fields}]}}


def _external(**fields: Any) -> Spec:
    return {"index": {"external": fields}}


def _node_match(**fields: Any) -> Spec:
    terms = [{"matchExpressions": [{"key": "a", **fields}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"placement": "perNode", "affinity": {"nodeAffinity": required}}


def _toleration(**fields: Any) -> Spec:
    return {"index": {"managed": {"tolerations": [fields]}}}


def _allowed(**fields: Any) -> Spec:
    return {"tenancy": {"allowedNamespaces": fields}}


def _env(**fields: Any) -> Spec:
    return {"podTemplate": {"env": [{"name": "A", **fields}]}}


def _match(**fields: Any) -> Spec:
    return _allowed(**{"from": "Selector", "selector": {"matchExpressions": [{"key": "a", **fields}]}})


MATCH: Final = (
    "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0]"
)
TIER: Final = "spec.tiers.secondary[0]"
TOLERATION: Final = "spec.index.managed.tolerations[0]"
PVC: Final = {"claimName": "c"}
OWN: Final = {"size": "1Gi"}

POOL_CASES: Final = (
    Case("multiple of 16", {"chunkTokens": 100}, {"chunkTokens": 96}, "spec.chunkTokens"),
    Case(
        "can't use a directory of the node",
        _tier(path="/d"),
        {"placement": "perNode", **_tier(path="/d")},
        "spec.tiers.secondary",
    ),
    Case(
        "can't share an existing claim",
        _tier(pvc=PVC),
        {"placement": "perNode", **_tier(pvc=PVC)},
        "spec.tiers.secondary",
    ),
    Case(
        "cache nodes run where the engines run",
        {"nodeSelector": {"a": "b"}},
        {"placement": "perNode", "nodeSelector": {"a": "b"}},
        "spec.placement",
    ),
    Case(
        "from 64Mi to 64Ti",
        {"tiers": {"memory": {"capacity": "63Mi"}}},
        {"tiers": {"memory": {"capacity": "64Mi"}}},
        "spec.tiers.memory.capacity",
    ),
    Case("a disk tier takes exactly one", _tier(), _tier(emptyDir={}), TIER),
    Case(
        "a remote tier takes exactly one",
        _tier(type="remote", redis={"urlSecretRef": KEY}, s3={"bucket": "abc"}),
        _tier(type="remote", s3={"bucket": "abc"}),
        TIER,
    ),
    Case(
        "medium goes with type disk",
        _tier(type="remote", s3={"bucket": "abc"}, medium="nvme"),
        _tier(pvc=OWN, medium="nvme"),
        f"{TIER}.medium",
    ),
    Case(
        "from 1Gi to 16Pi",
        _tier(pvc=OWN, capacity="17Pi"),
        _tier(pvc=OWN, capacity="16Pi"),
        f"{TIER}.capacity",
    ),
    Case("give claimName for an existing claim", _tier(pvc={}), _tier(pvc={"size": "1Gi"}), f"{TIER}.pvc"),
    Case(
        "storageClassName goes with size",
        _tier(pvc={**PVC, "storageClassName": "fast"}),
        _tier(pvc={"size": "1Gi", "storageClassName": "fast"}),
        f"{TIER}.pvc.storageClassName",
    ),
    Case("from 1Gi to 1Pi", _tier(pvc={"size": "1Mi"}), _tier(pvc={"size": "1.5Gi"}), f"{TIER}.pvc.size"),
    Case(
        "from 1Gi to 16Pi",
        _tier(emptyDir={"sizeLimit": "1Mi"}),
        _tier(emptyDir={"sizeLimit": "2Gi"}),
        f"{TIER}.emptyDir.sizeLimit",
    ),
    Case(
        "give exactly one of managed and external",
        {"index": {"managed": {}, "external": {"url": "redis://r"}}},
        {"index": {"external": {"url": "redis://r"}}},
        "spec.index",
    ),
    Case(
        "from 16Mi to 1Ti",
        {"index": {"managed": {"maxMemory": "1Mi"}}},
        {"index": {"managed": {"maxMemory": "1G"}}},
        "spec.index.managed.maxMemory",
    ),
    Case(
        "no request may be over its limit",
        {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}},
        {"resources": {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"cpu": 2}}},
        "spec.resources.requests",
    ),
    Case(
        "keys are cpu, memory",
        {"resources": {"requests": {"gpu": 1}}},
        {"resources": {"requests": {"ephemeral-storage": "1Gi"}}},
        "spec.resources.requests",
    ),
    Case(
        "keys are names such as app",
        {"podTemplate": {"metadata": {"labels": {"a b": "c"}}}},
        {"podTemplate": {"metadata": {"labels": {"example.com/a.b": "c"}}}},
        "spec.podTemplate.metadata.labels",
    ),
    Case(
        "what can't be shared, such as",
        {"resources": {"requests": {"example.com/fpga": 1}}},
        {"resources": {"requests": {"example.com/fpga": 1}, "limits": {"example.com/fpga": "1"}}},
        "spec.resources.requests",
    ),
    Case(
        "devices such as nvidia.com/gpu are counted",
        {"resources": {"limits": {"nvidia.com/gpu": "500m"}}},
        {"resources": {"limits": {"nvidia.com/gpu": 8}}},
        "spec.resources.limits",
    ),
    Case(
        "a toleration without `key`", _toleration(value="x"), _toleration(operator="Exists"), f"{TOLERATION}.operator"
    ),
    Case(
        "operator Exists takes no `value`",
        _toleration(key="a", operator="Exists", value="x"),
        _toleration(key="a", value="x"),
        f"{TOLERATION}.value",
    ),
    Case(
        "tolerationSeconds needs effect NoExecute",
        _toleration(key="a", tolerationSeconds=1),
        _toleration(key="a", effect="NoExecute", tolerationSeconds=1),
        f"{TOLERATION}.effect",
    ),
    Case(
        "give exactly one of url, urlSecretRef, sentinel and cluster",
        _external(),
        _external(cluster={"addresses": ["redis:6379"]}),
        "spec.index.external",
    ),
    Case(
        "with urlSecretRef the user and password are part of the URL",
        _external(urlSecretRef=KEY, username="u"),
        _external(urlSecretRef=KEY),
        "spec.index.external.urlSecretRef",
    ),
    Case(
        "write url as redis://HOST:PORT/DB",
        _external(url="redis://user:secret@r"),
        _external(url="redis://r:6379/1"),
        "spec.index.external.url",
    ),
    Case(
        "must be a size from 64Mi to 64Ti",
        {"tiers": {"memory": {"capacity": "64 GB"}}},
        {"tiers": {"memory": {"capacity": "64Gi"}}},
        "spec.tiers.memory.capacity",
    ),
    Case(
        "with tls write the url as rediss://",
        _external(url="redis://r", tls={}),
        _external(url="rediss://r", tls={}),
        "spec.index.external.url",
    ),
    Case(
        "Exists and DoesNotExist take no `values`; the other",
        _node_match(operator="Exists", values=["b"]),
        _node_match(operator="In", values=["b"]),
        f"{MATCH}.values",
    ),
    Case(
        "Gt and Lt take exactly one value",
        _node_match(operator="Gt", values=["b"]),
        _node_match(operator="Gt", values=["7"]),
        f"{MATCH}.values",
    ),
    Case(
        "In and NotIn need `values`",
        _match(operator="In"),
        _match(operator="In", values=["b"]),
        "spec.tenancy.allowedNamespaces.selector.matchExpressions[0].values",
    ),
    Case(
        "port 9470 is the control API's",
        {"transport": {"port": 9470}},
        {"transport": {"port": 1}},
        "spec.transport.port",
    ),
    Case(
        "selector goes with from Selector",
        _allowed(**{"from": "All", "selector": {}}),
        _allowed(**{"from": "Selector", "selector": {}}),
        "spec.tenancy.allowedNamespaces.selector",
    ),
    Case(
        "names goes with from Names",
        _allowed(**{"from": "Names"}),
        _allowed(**{"from": "Names", "names": ["team-a"]}),
        "spec.tenancy.allowedNamespaces.names",
    ),
    Case(
        "give exactly one of certManager and secretRef",
        {"security": {"tls": {}}},
        {"security": {"tls": {"certManager": {"issuerRef": {"name": "ca"}}}}},
        "spec.security.tls",
    ),
    Case(
        "labels under kvcommons.io/",
        {"podTemplate": {"metadata": {"labels": {"kvcommons.io/pool": "other"}}}},
        {"podTemplate": {"metadata": {"labels": {"team": "a"}}}},
        "spec.podTemplate.metadata.labels",
    ),
    Case(
        "annotations under kvcommons.io/",
        {"podTemplate": {"metadata": {"annotations": {"kvcommons.io/x": "y"}}}},
        {"podTemplate": {"metadata": {"annotations": {"example.com/x": "y z"}}}},
        "spec.podTemplate.metadata.annotations",
    ),
    Case(
        "localhostProfile goes with type Localhost",
        {"podTemplate": {"securityContext": {"seccompProfile": {"type": "Localhost"}}}},
        {"podTemplate": {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}}},
        "spec.podTemplate.securityContext.seccompProfile.localhostProfile",
    ),
    Case(
        "give `value` or `valueFrom`",
        _env(value="x", valueFrom={"fieldRef": {"fieldPath": "status.podIP"}}),
        _env(valueFrom={"fieldRef": {"fieldPath": "status.podIP"}}),
        "spec.podTemplate.env[0].value",
    ),
    Case(
        "variables that begin with KVCOMMONS_",
        {"podTemplate": {"env": [{"name": "KVCOMMONS_NODE__NODE_ID"}]}},
        {"podTemplate": {"env": [{"name": "MALLOC_ARENA_MAX", "value": "2"}]}},
        "spec.podTemplate.env[0].name",
    ),
    Case(
        "give exactly one of secretKeyRef",
        _env(valueFrom={}),
        _env(valueFrom={"secretKeyRef": KEY}),
        "spec.podTemplate.env[0].valueFrom",
    ),
)
