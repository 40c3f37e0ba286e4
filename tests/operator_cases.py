"""Example resources of every class of field, for whoever must build, apply or check all of their children."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import operator_examples as examples
from crd_random import Maker
from kvcommons_operator import names, plan_pools
from kvcommons_operator.api import InferenceDeployment, KVCachePool, parse_deployment, parse_pool
from kvcommons_operator.build.deployment import Deployment
from kvcommons_operator.build.meta import Owner
from kvcommons_operator.observed import Manifest
from kvcommons_operator.plan import plan_deployment, plan_pool
from kvcommons_operator.plan_deployments import children
from kvcommons_operator.references import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CPU = {"maxReplicas": 4, "metrics": [{"type": "Cpu", "target": "80"}]}
ALL_ALLOWED = {"allowedNamespaces": {"from": "All"}}
LONG = "a" + "b" * 62


def _with_stores() -> dict[str, Manifest]:
    bucket = {"bucket": "kv-cache", "endpoint": "https://s3.example:9000", "credentialsSecretRef": {"name": "bucket"}}
    stores = [
        {"type": "remote", "capacity": "64Gi", "redis": {"urlSecretRef": {"name": "store", "key": "url"}}},
        {"type": "remote", "capacity": "2Ti", "s3": bucket},
    ]
    return {
        "stores": examples.pool(
            tiers={"secondary": [{"type": "disk", "capacity": "100Gi", "path": "/mnt/nvme0"}, *stores]},
            compression={"codec": "int8"},
            security={"tls": {"certManager": {"issuerRef": {"name": "ca"}}}},
        ),
        "sidecar with stores": examples.pool(
            placement="sidecar", tiers={"secondary": stores}, security={"tls": {"secretRef": {"name": "certificates"}}}
        ),
    }


def pools() -> dict[str, Manifest]:
    """Pools, by what is special about them."""
    monitored = {"serviceMonitor": True, "prometheusRule": True, "labels": {"release": "prometheus"}}
    external = {
        "managed": None,
        "external": {
            "sentinel": {"masterName": "main", "addresses": ["s-0:26379", "s-1:26379"]},
            "username": "kv",
            "passwordSecretRef": {"name": "redis", "key": "password"},
            "tls": {"caSecretRef": {"name": "ca", "key": "ca.crt"}, "clientSecretRef": {"name": "client"}},
            "keyPrefix": "kvc:mine:",
        },
    }
    by_secret = {"managed": None, "external": {"urlSecretRef": {"name": "redis", "key": "url"}}}
    return {
        "per node": examples.pool(),
        "long name": examples.pool(LONG),
        "sidecar": examples.pool(placement="sidecar"),
        "sentinel": examples.pool(placement="sidecar", index={"managed": {"replicas": 3, "maxMemory": "1Gi"}}),
        "external": examples.pool(index=external),
        "url by secret": examples.pool(index=by_secret),
        "disks": examples.pool(
            tiers={
                "secondary": [
                    {"type": "disk", "capacity": "100Gi", "path": "/mnt/nvme0"},
                    {"type": "disk", "capacity": "100Gi", "pvc": {"claimName": "shared"}},
                ]
            },
            eviction={"policy": "s3fifo"},
            tenancy={"tenantPercentMax": 40},
        ),
        "sidecar with disks": examples.pool(
            placement="sidecar",
            tiers={
                "secondary": [
                    {"type": "disk", "capacity": "10Gi", "emptyDir": {}},
                    {"type": "disk", "capacity": "10Gi", "pvc": {"size": "11Gi", "storageClassName": "fast"}},
                ]
            },
        ),
        **_with_stores(),
        "everything": examples.pool(
            tiers={
                "memory": {"hugePages": "2Mi"},
                "secondary": [{"type": "disk", "capacity": "2Ti", "emptyDir": {"sizeLimit": "3Ti"}}],
            },
            nodeSelector={"gpu": "true"},
            tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            affinity={
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
                        ]
                    }
                }
            },
            resources={"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
            security={"multiTenant": True, "networkPolicy": {"allowFrom": [{"matchLabels": {"team": "metrics"}}]}},
            failureMode="FailClosed",
            monitoring=monitored,
            logLevel="debug",
            podTemplate={
                "metadata": {"labels": {"team": "infra"}, "annotations": {"note": "x"}},
                "imagePullSecrets": [{"name": "registry"}],
                "priorityClassName": "system-node-critical",
                "securityContext": {"runAsUser": 1234, "runAsGroup": 1234},
                "env": [{"name": "MALLOC_ARENA_MAX", "value": "2"}],
            },
            tenancy=ALL_ALLOWED,
        ),
    }


def deployments() -> dict[str, tuple[Manifest, Manifest | None]]:
    """Deployments and the pools that they name, by what is special about them."""
    pool, sidecar = examples.pool(tenancy=ALL_ALLOWED), examples.pool(placement="sidecar")
    foreign = {"poolRef": {"name": "commons", "namespace": "llm"}}
    hub = {
        "name": "q",
        "revision": COMMIT,
        "source": {"pvc": None, "hub": {"repo": "Qwen/Qwen3", "tokenSecretRef": _key()}},
    }
    image = {"source": {"pvc": None, "image": {"reference": "models/smol:1", "path": "smol"}}}
    return {
        "per node": (examples.deployment(), pool),
        "sidecar": (examples.deployment(), sidecar),
        "no pool": (examples.deployment(poolRef=None), None),
        "long name": (examples.deployment(LONG), pool),
        "other namespace": (examples.deployment("chat", "team-a", **foreign), pool),
        "long name in another namespace": (examples.deployment(LONG, "team-a", **foreign), pool),
        "hub": (examples.deployment(model=hub), pool),
        "image volume": (examples.deployment(model=image), pool),
        "local": (examples.deployment(model={"source": {"pvc": None, "local": {"path": "/models/smol"}}}), sidecar),
        "autoscaled": (examples.deployment(autoscaling=CPU), pool),
        "keda": (examples.deployment(autoscaling=_keda()), pool),
        "spread over nodes": (
            examples.deployment(poolRef=None, engine={"tensorParallelSize": 4, "nodesPerReplica": 2}),
            None,
        ),
        "roles": (roles_example(), pool),
        "roles beside sidecars": (
            roles_example(decode={"autoscaling": CPU, "nodeSelector": {"gpu": "small"}}),
            sidecar,
        ),
        "everything": (_everything(), pool),
        "everything beside a sidecar": (_everything(), sidecar),
    }


def _key() -> dict[str, str]:
    return {"name": "hub", "key": "token"}


def _keda() -> dict[str, object]:
    return {
        "minReplicas": 0,
        "maxReplicas": 4,
        "metrics": [{"type": "Prometheus", "query": "sum(up)", "target": "5"}],
        "keda": {"prometheusAddress": "http://prometheus:9090", "authenticationRef": {"name": "auth"}},
    }


def _everything() -> Manifest:
    return examples.deployment(
        model={"revision": "sha256-0123"},
        engine={
            "command": ["/opt/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"],
            "args": ["--max-model-len=4096"],
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
            "sharedMemory": "2Gi",
            "dataParallelSize": 2,
        },
        routing={
            "replicas": 3,
            "policy": "leastLoad",
            "weights": {"memoryCreditPercent": 90, "decodeMicroseconds": 4000},
            "limits": {"requestsMax": 10, "bodyBytesMax": "512Mi"},
            "tenantKeysSecretRef": {"name": "keys", "key": "keys.json"},
            "podTemplate": {"serviceAccountName": "mine"},
        },
        service={"type": "LoadBalancer", "port": 80, "loadBalancerClass": "x/y", "annotations": {"a": "b"}},
        gateway={
            "httpRoute": {"parentRefs": [{"name": "gate"}], "hostnames": ["llm.example.com"], "pathPrefix": "/v1"}
        },
        podTemplate={
            "metadata": {"labels": {"team": "a"}},
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
            ],
            "securityContext": {"runAsUser": 2000},
            "env": [{"name": "OMP_NUM_THREADS", "value": "2"}, {"name": "HOME", "value": "/scratch"}],
            "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        },
        probes={"startup": {"failureThreshold": 10}, "readiness": {"path": "/ready"}},
        disruption={"minAvailable": "50%"},
        rollout={"maxSurge": "25%", "maxUnavailable": "1"},
        drainSeconds=30,
        monitoring={"serviceMonitor": True, "prometheusRule": True},
        networkPolicy={"allowFrom": [{"matchLabels": {"team": "metrics"}}]},
    )


def built() -> Iterator[tuple[str, list[Manifest]]]:
    """(what is special, all children) of every example."""
    apis = frozenset(examples.OPTIONAL)
    for name, pool in pools().items():
        yield f"pool: {name}", list(plan_pool(pool, examples.pool_world(apis=apis)).apply)
    for name, (ifd, of) in deployments().items():
        yield f"deployment: {name}", list(plan_deployment(ifd, examples.world(apis=apis, pool=of)).apply)


def random_children(seed: int) -> list[Manifest]:
    """Children of a random pool and of random deployments with and without it, whatever is not built yet of them."""
    maker, apis = Maker(seed), frozenset(examples.OPTIONAL)
    raw = examples.resource("KVCachePool", "commons", "llm", _without_huge_pages(maker.valid(KVCachePool)))
    world = examples.pool_world(apis=apis)
    pool = plan_pools.pool_of(raw, parse_pool(raw), world)
    found = list(plan_pools.children(pool, apis).manifests)
    for name, of in (("alone", None), ("pooled", pool)):
        wish = _without_huge_pages(maker.valid(InferenceDeployment))
        spec = parse_deployment(examples.resource("InferenceDeployment", name, "llm", wish))
        owner = Owner(kind=names.DEPLOYMENT_KIND, namespace="llm", name=name, uid=f"uid-{name}")
        deployment = Deployment(owner=owner, spec=spec.spec, install=examples.INSTALL, pool=of)
        found += children(deployment, examples.world(apis=apis)).manifests
    return found


def _without_huge_pages(spec: Any) -> Any:
    """Amounts of huge pages that a user asks for beside the pool's own must be multiples of a page: Kubernetes' to refuse."""
    if isinstance(spec, dict):
        return {key: _without_huge_pages(value) for key, value in spec.items() if not key.startswith("hugepages-")}
    return [_without_huge_pages(one) for one in spec] if isinstance(spec, list) else spec


def roles_example(**roles: Any) -> Manifest:
    """A deployment whose prompts are read by one engine and whose answers are written by three others."""
    decode = {"replicas": 3, "args": ["--x"], "env": [{"name": "A", "value": "decode"}]}
    return examples.deployment(replicas=1, roles=examples.merged({"prefill": {}, "decode": decode}, roles))


def roles_deployment() -> Deployment:
    """The same, as builders see it."""
    raw = roles_example()
    parsed, world = parse_deployment(raw), examples.world()
    plain = Deployment(owner=Owner.of(raw), spec=parsed.spec, install=examples.INSTALL)
    return replace(plain, pool=resolve(plain.owner, parsed.spec.pool_ref, world).pool)


def namespaces_of(manifests: list[Manifest]) -> set[str]:
    """Namespaces that these are in."""
    return {manifest["metadata"]["namespace"] for manifest in manifests}
