"""The whole life of an operator under the chart's rules, on an API server whose audit log tells what it asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import kube_rights
import yaml
from kube_apiserver import ApiServer
from kube_binaries import Binaries
from kube_chart import CHART, NAMESPACE, RELEASE, Helm
from kube_client import kubeconfig_text
from kube_process import wait_for
from kvcommons_operator.kube.kinds import OPTIONAL
from operator_process import (
    DAEMON_SETS,
    DEPLOYMENTS,
    DEPLOYMENTS_OWN,
    POOLS,
    STATEFUL_SETS,
    Operator,
    Place,
    deployment,
    pool,
)

USER = f"system:serviceaccount:{NAMESPACE}:kvcommons-operator"
TEAMS = ("team-a", "team-b")
CPU = {"minReplicas": 1, "maxReplicas": 4, "metrics": [{"type": "Cpu", "target": "80"}]}
KEDA = {
    "minReplicas": 0,
    "maxReplicas": 4,
    "metrics": [{"type": "Prometheus", "query": "sum(up)", "target": "5"}],
    "keda": {"prometheusAddress": "http://prometheus:9090"},
}
GATEWAY = {"httpRoute": {"parentRefs": [{"name": "gate"}], "hostnames": ["llm.example.com"]}}
MONITORED = {"serviceMonitor": True, "prometheusRule": True}
GUESTS_BY_LABEL = {"from": "Selector", "selector": {"matchLabels": {"kubernetes.io/metadata.name": TEAMS[1]}}}
GUESTS_BY_NAME = {"from": "Names", "names": [TEAMS[1]]}
RUNNING = {
    "phase": "Running",
    "podIP": "127.0.0.1",
    "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [{"name": "main", "ready": True, "image": "none", "imageID": "", "restartCount": 0}],
}
# Rights that no request shows: what they are asked for by is a check inside another request.
BY_CHECKS = {
    ("inferencedeployments/finalizers", "update"): "the plugin OwnerReferencesPermissionEnforcement",
    ("kvcachepools/finalizers", "update"): "the same",
    ("pods", "get"): "routers are granted it, and nobody grants more than he has",
    ("inferencedeployments", "get"): "only after a conflict (409)",
    ("kvcachepools", "get"): "only after a conflict (409)",
}


@contextmanager
def audited(folder: Path, binaries: Binaries) -> Iterator[ApiServer]:
    """An API server with the plugin that checks ownerReferences, the optional APIs, and an audit log of its own."""
    binaries.bring("etcd", "kube-apiserver", "kubectl", "helm")
    flags = (
        "--endpoint-reconciler-type=none",
        "--disable-admission-plugins=ServiceAccount",
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
    )
    server = ApiServer(folder, binaries, flags=flags)
    try:
        server.start()
        server.apply(*(loose(kind.plural, kind.group, kind.version, kind.name) for kind in OPTIONAL))
        for team in TEAMS:
            server.create_namespace(team)
        yield server
    finally:
        server.stop()


def loose(plural: str, group: str, version: str, kind: str) -> dict[str, Any]:
    """A CustomResourceDefinition of somebody else's kind; any content will do."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


def installed(server: ApiServer, values: dict[str, Any]) -> list[dict[str, Any]]:
    """The chart's manifests, installed by helm on an API server where nothing becomes ready."""
    path = server.folder / "values.json"
    path.write_text(json.dumps(values))
    helm = Helm(server)
    options = ("--namespace", NAMESPACE, "--create-namespace", "--values", str(path))
    helm.run("install", RELEASE, str(CHART), *options)
    for crd in ("kvcachepools", "inferencedeployments", "inferenceroles"):
        server.kubectl("wait", "--for=condition=Established", f"crd/{crd}.kvcommons.io", "--timeout=30s")
    return [one for one in yaml.safe_load_all(helm.run("get", "manifest", RELEASE, "-n", NAMESPACE)) if one]


def operator_of(server: ApiServer, manifests: list[dict[str, Any]], **changes: Any) -> Operator:
    """The operator as the chart's Deployment starts it, with its ServiceAccount's token."""
    token = server.kubectl("create", "token", "kvcommons-operator", "-n", NAMESPACE).strip()
    kubeconfig = server.folder / "operator.kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(kubeconfig_text(server.url, server.ca, token))
    workload = next(one for one in manifests if one["kind"] == "Deployment")
    environment = workload["spec"]["template"]["spec"]["containers"][0]["env"]
    given = {one["name"].partition("__")[2].lower(): one["value"] for one in environment if "value" in one}
    given = {name: value for name, value in given.items() if name not in ("http_port", "log_json")}
    return Operator(server, server.folder, kubeconfig=kubeconfig, **{**given, "lease_seconds": 4, **changes})


def pod(name: str, labels: dict[str, str], annotations: dict[str, str]) -> dict[str, Any]:
    """A pod that some controller would have made."""
    container = {"name": "main", "image": "none"}
    metadata = {"name": name, "labels": labels, "annotations": annotations}
    spec = {"containers": [container], "nodeName": name, "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


class Life:
    """One operator from its start to its end, and all that it may be asked to do in between."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.home, self.team = (Place(server, name) for name in TEAMS)

    def everything_is_made(self, guests: dict[str, Any]) -> None:
        """Every kind of child, in two namespaces, with everything that is optional."""
        self.home.apply(pool(monitoring=MONITORED, tenancy={"allowedNamespaces": guests}))
        self.home.apply(deployment(autoscaling=CPU, gateway=GATEWAY, monitoring=MONITORED))
        self.home.apply(pool("small"))
        self.home.apply(deployment("queue", autoscaling=KEDA))
        spread = {"image": "vllm:0.32.0", "tensorParallelSize": 4, "nodesPerReplica": 2}
        self.home.apply(deployment("wide", None, engine=spread))
        self.team.apply(deployment("guest", poolRef={"name": "pool", "namespace": self.home.namespace}))
        for kind, name in (
            (DAEMON_SETS, "pool-node"),
            (STATEFUL_SETS, "pool-index"),
            (STATEFUL_SETS, "small-index"),
            (DEPLOYMENTS, "chat-engine"),
            (DEPLOYMENTS, "chat-router"),
        ):
            self.home.have(kind, name)
        for plural, group in (
            ("horizontalpodautoscalers", "autoscaling/v2"),
            ("servicemonitors", "monitoring.coreos.com/v1"),
            ("prometheusrules", "monitoring.coreos.com/v1"),
            ("scaledobjects", "keda.sh/v1alpha1"),
            ("httproutes", "gateway.networking.k8s.io/v1"),
            ("leaderworkersets", "leaderworkerset.x-k8s.io/v1"),
        ):
            self.until(partial(self.home.list, f"{group}/{plural}"), f"some {plural}")
        self.team.have(DEPLOYMENTS, "guest-engine")

    def pods_are_replaced_and_marked(self) -> None:
        """A cache node of an older template is deleted; of two engines one is marked as the first to go."""
        of_pool = self.home.have(DAEMON_SETS, "pool-node")["spec"]["template"]["metadata"]["labels"]
        of_chat = self.home.have(DEPLOYMENTS, "chat-engine")["spec"]["template"]["metadata"]["labels"]
        outdated = {"kvcommons.io/template-hash": "another"}
        self.home.apply(pod("pool-node-old", of_pool, outdated), *(pod(f"chat-{n}", of_chat, {}) for n in "ab"))
        for name in ("chat-a", "chat-b"):
            self.home.merge("pods", name, {"status": RUNNING}, "status")
        self.home.gone("pods", "pool-node-old")
        cost = "controller.kubernetes.io/pod-deletion-cost"
        for name in ("chat-a", "chat-b"):
            self.home.until("pods", name, lambda it: cost in it["metadata"].get("annotations", {}), "is ranked")

    def what_is_not_wanted_goes(self) -> None:
        """What a change makes superfluous is deleted by the operator itself; so is what stands in another namespace."""
        less = {"autoscaling": None, "gateway": None, "monitoring": None, "disruption": {"enabled": False}}
        self.home.merge(DEPLOYMENTS_OWN, "chat", {"spec": {**less, "networkPolicy": {"enabled": False}}})
        self.home.merge(DEPLOYMENTS_OWN, "queue", {"spec": {"autoscaling": None}})
        self.home.merge(DEPLOYMENTS_OWN, "wide", {"spec": {"engine": {"nodesPerReplica": 1}}})
        self.home.merge(POOLS, "small", {"spec": {"index": {"managed": {"replicas": 3}}}})
        self.home.gone("autoscaling/v2/horizontalpodautoscalers", "chat-engine")
        self.home.gone(STATEFUL_SETS, "small-index")
        for kind in ("monitoring.coreos.com/v1/prometheusrules", "keda.sh/v1alpha1/scaledobjects"):
            self.until(partial(self.has_none_of_deployments, kind), f"no {kind}")
        self.team.delete(DEPLOYMENTS_OWN, "guest")
        self.team.gone(DEPLOYMENTS_OWN, "guest")
        for kind in (DEPLOYMENTS, "services", "secrets", "serviceaccounts", "rbac.authorization.k8s.io/v1/roles"):
            left = [
                one["metadata"]["name"]
                for one in self.home.list(kind)
                if "guest" in json.dumps(one["metadata"]["labels"])
            ]
            assert not left, f"{kind} of a deployment that has gone"

    def has_none_of_deployments(self, kind: str) -> bool:
        return not [one for one in self.home.list(kind) if "kvcommons.io/deployment" in one["metadata"]["labels"]]

    def until(self, holds: Callable[[], object], what: str) -> None:
        wait_for(holds, what, 40.0)


def judge(server: ApiServer, manifests: list[dict[str, Any]], guests: dict[str, Any]) -> None:
    """Lives the life; then nothing was refused, and every rule was needed, in one namespace at least where there are several."""
    operator = operator_of(server, manifests).start().ready()
    life = Life(server)
    try:
        life.everything_is_made(guests)
        life.pods_are_replaced_and_marked()
        life.what_is_not_wanted_goes()
    finally:
        operator.stop()
        print(operator.log[-20_000:])  # noqa: T201 - pytest shows it with a failure
    assert kube_rights.refused(server.audit_log, USER) == []
    rules = {right for right in kube_rights.granted(own(manifests)) if (right.resource, right.verb) not in BY_CHECKS}
    rules = {right._replace(scope="") if right.scope in TEAMS else right for right in rules}
    unused = kube_rights.unused(rules, kube_rights.used(server.audit_log, USER))
    assert not unused, "\n".join(map(str, unused))


def own(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The operator's own roles, not those that the chart gives to users."""
    return [one for one in manifests if one["metadata"]["name"] in ("kvcommons-operator", "kvcommons-operator-own")]
