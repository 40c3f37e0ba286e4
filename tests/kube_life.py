"""The whole life of an operator under the chart's rules, on an API server whose audit log tells what it asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import kube_rights
import yaml
from control_stand_in import ControlStandIn
from kube_apiserver import ApiServer
from kube_binaries import Binaries
from kube_chart import CHART, NAMESPACE, RELEASE, Helm
from kube_client import kubeconfig_text
from kube_process import wait_for
from kvcommons_operator.kube.kinds import OPTIONAL
from kvcommons_operator.names import DEPLOYMENT_FINALIZER
from operator_process import (
    DAEMON_SETS,
    DEPLOYMENTS,
    DEPLOYMENTS_OWN,
    POOLS,
    ROLES_OWN,
    STATEFUL_SETS,
    Operator,
    Place,
    deployment,
    pool,
)

USER = f"system:serviceaccount:{NAMESPACE}:kvcommons-operator"
RELEASE_NAME = "kvcommons-release"
RELEASE_USER = f"system:serviceaccount:{NAMESPACE}:{RELEASE_NAME}"
RELEASE_SECONDS_MAX = 120
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
RESIZE_MINOR_MIN = 33  # of Kubernetes, which has had pods/resize since
NODE_ADDRESS = "127.94.73.1"
RUNNING: dict[str, Any] = {
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
    kubeconfig = kubeconfig_of(server, "kvcommons-operator")
    given = {name.partition("__")[2].lower(): value for name, value in environment_of(manifests, "Deployment").items()}
    given = {name: value for name, value in given.items() if name not in ("http_port", "log_json")}
    return Operator(
        server,
        server.folder,
        kubeconfig=kubeconfig,
        **{**given, "lease_seconds": 15, "events_after_seconds": 1, **changes},
    )


def kubeconfig_of(server: ApiServer, account: str) -> Path:
    """With the token of a ServiceAccount of the chart."""
    token = server.kubectl("create", "token", account, "-n", NAMESPACE).strip()
    kubeconfig = server.folder / f"{account}.kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(kubeconfig_text(server.url, server.ca, token))
    return kubeconfig


def environment_of(manifests: list[dict[str, Any]], kind: str) -> dict[str, str]:
    """What the chart tells the container of its Deployment, or of its Job."""
    workload = next(one for one in manifests if one["kind"] == kind)
    given = workload["spec"]["template"]["spec"]["containers"][0]["env"]
    return {one["name"]: one["value"] for one in given if "value" in one}


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
        self.home.apply(pool("small", security={"tls": {"certManager": {"issuerRef": {"name": "ca"}}}}))
        self.home.apply(deployment("queue", autoscaling=KEDA))
        self.home.apply(pool("beside", placement="sidecar"), deployment("sided", "beside", monitoring=MONITORED))
        spread = {"image": "vllm:0.32.0", "tensorParallelSize": 4, "nodesPerReplica": 2}
        self.home.apply(deployment("wide", None, engine=spread))
        self.home.apply(deployment("split", roles={"prefill": {}, "decode": {"replicas": 2}}))
        self.team.apply(deployment("guest", poolRef={"name": "pool", "namespace": self.home.namespace}))
        for kind, name in (
            (DAEMON_SETS, "pool-node"),
            (STATEFUL_SETS, "pool-index"),
            (STATEFUL_SETS, "small-index"),
            (DEPLOYMENTS, "chat-engine"),
            (DEPLOYMENTS, "chat-router"),
            (DEPLOYMENTS, "split-prefill"),
            (DEPLOYMENTS, "split-decode"),
        ):
            self.home.have(kind, name)
        self.home.until(ROLES_OWN, "split-decode", lambda it: it.get("status"), "has a status")
        for plural, group in (
            ("horizontalpodautoscalers", "autoscaling/v2"),
            ("podmonitors", "monitoring.coreos.com/v1"),
            ("servicemonitors", "monitoring.coreos.com/v1"),
            ("prometheusrules", "monitoring.coreos.com/v1"),
            ("scaledobjects", "keda.sh/v1alpha1"),
            ("httproutes", "gateway.networking.k8s.io/v1"),
            ("leaderworkersets", "leaderworkerset.x-k8s.io/v1"),
            ("certificates", "cert-manager.io/v1"),
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

    def a_node_that_lives_is_given_another_size(self) -> None:
        """Of which the kubelet is asked for more memory; none is here to give it."""
        template = self.home.have(DAEMON_SETS, "pool-node")["spec"]["template"]
        outdated = {**template["metadata"]["annotations"], "kvcommons.io/template-hash": "another"}
        made = pod("pool-node-small", template["metadata"]["labels"], outdated)
        memory = {"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}
        container = {"name": "cache-node", "image": "none", "resources": memory}
        self.home.apply({**made, "spec": {**made["spec"], "containers": [container]}})
        state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        told = {**RUNNING["containerStatuses"][0], "name": "cache-node", "state": state, "resources": memory}
        node = ControlStandIn(NODE_ADDRESS, "pool-node-small").start()
        try:
            running = {**RUNNING, "podIP": NODE_ADDRESS, "containerStatuses": [told]}
            self.home.merge("pods", "pool-node-small", {"status": running}, "status")
            self.is_given_or_replaced("pool-node-small", memory)
        finally:
            node.stop()

    def is_given_or_replaced(self, name: str, memory: dict[str, Any]) -> None:
        """Where Kubernetes changes no pod that runs, a new one comes in its place, as after any other change."""
        if int(self.server.request("GET", "/version")["gitVersion"].split(".")[1]) < RESIZE_MINOR_MIN:
            self.home.gone("pods", name)
            return
        self.home.until("pods", name, lambda it: it["spec"]["containers"][0]["resources"] != memory, "asks for more")
        self.home.delete("pods", name)

    def a_pod_that_hangs_is_explained(self) -> None:
        """By its Events, which are read for such pods alone."""
        labels = self.home.have(DEPLOYMENTS, "chat-engine")["spec"]["template"]["metadata"]["labels"]
        made = self.home.create("pods", pod("chat-hangs", labels, {}))
        about = {"kind": "Pod", "namespace": self.home.namespace, "name": "chat-hangs", "uid": made["metadata"]["uid"]}
        since = made["metadata"]["creationTimestamp"]
        said = {
            "type": "Warning",
            "reason": "FailedMount",
            "message": 'secret "none" not found',
            "lastTimestamp": since,
        }
        self.home.create("events", {"metadata": {"generateName": "test-"}, "involvedObject": about, **said})
        self.home.reason(DEPLOYMENTS_OWN, "chat", "ResolvedRefs", "SecretNotFound")
        self.home.delete("pods", "chat-hangs")
        self.home.reason(DEPLOYMENTS_OWN, "chat", "ResolvedRefs", "ResolvedRefs")

    def what_is_not_wanted_goes(self) -> None:
        """What a change makes superfluous is deleted by the operator itself; so is what stands in another namespace."""
        less = {"autoscaling": None, "gateway": None, "monitoring": None, "disruption": {"enabled": False}}
        self.home.merge(DEPLOYMENTS_OWN, "chat", {"spec": {**less, "networkPolicy": {"enabled": False}}})
        self.home.merge(DEPLOYMENTS_OWN, "queue", {"spec": {"autoscaling": None}})
        self.home.merge(DEPLOYMENTS_OWN, "sided", {"spec": {"monitoring": None}})
        self.home.merge(DEPLOYMENTS_OWN, "wide", {"spec": {"engine": {"nodesPerReplica": 1}}})
        self.home.merge(POOLS, "small", {"spec": {"index": {"managed": {"replicas": 3}}, "security": {"tls": None}}})
        self.home.gone("autoscaling/v2/horizontalpodautoscalers", "chat-engine")
        self.home.gone(STATEFUL_SETS, "small-index")
        self.home.gone("cert-manager.io/v1/certificates", "small-node-tls")
        monitors = ("monitoring.coreos.com/v1/podmonitors", "monitoring.coreos.com/v1/prometheusrules")
        for kind in (*monitors, "keda.sh/v1alpha1/scaledobjects"):
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

    def a_pool_goes_after_its_users(self) -> None:
        """In use when it was deleted, it is the operator that takes its nodes away first, then its index."""
        self.home.delete(POOLS, "pool")
        for name in ("chat", "queue", "split"):
            self.home.delete(DEPLOYMENTS_OWN, name)
        self.home.gone(POOLS, "pool")

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
        life.a_node_that_lives_is_given_another_size()
        life.a_pod_that_hangs_is_explained()
        operator.stop()
        operator.start().ready()
        life.a_pod_that_hangs_is_explained()  # by the Event that is there already
        life.what_is_not_wanted_goes()
        life.a_pool_goes_after_its_users()
    finally:
        operator.stop()
        print(operator.log[-20_000:])  # noqa: T201 - pytest shows it with a failure
    assert kube_rights.refused(server.audit_log, USER) == []
    rules = {right for right in kube_rights.granted(own(manifests)) if (right.resource, right.verb) not in BY_CHECKS}
    rules = {right._replace(scope="") if right.scope in TEAMS else right for right in rules}
    unused = kube_rights.unused(rules, kube_rights.used(server.audit_log, USER))
    assert not unused, "\n".join(map(str, unused))


def judge_release(server: ApiServer) -> None:
    """What the job at the end may do is what it does, under a ServiceAccount of its own: no finalizer of ours is left."""
    hooks = Helm(server).run("get", "hooks", RELEASE, "-n", NAMESPACE)
    hooked = [one for one in yaml.safe_load_all(hooks) if one and one["metadata"]["name"].startswith(RELEASE_NAME)]
    server.apply(*(one for one in hooked if one["kind"] != "Job"))
    home = Place(server, TEAMS[0])
    assert any(one["metadata"].get("finalizers") for one in home.list(POOLS)), "a pool that somebody uses is held"
    # As on a deployment whose router stands in another namespace.
    home.merge(DEPLOYMENTS_OWN, "sided", {"metadata": {"finalizers": [DEPLOYMENT_FINALIZER]}})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kvcommons_operator", "--release"],
        env={
            **os.environ,
            **environment_of(hooked, "Job"),
            "KVCOMMONS_OPERATOR__KUBECONFIG": str(kubeconfig_of(server, RELEASE_NAME)),
        },
        capture_output=True,
        text=True,
        timeout=RELEASE_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [one for one in (*home.list(POOLS), *home.list(DEPLOYMENTS_OWN)) if one["metadata"].get("finalizers")]
    assert kube_rights.refused(server.audit_log, RELEASE_USER) == []
    used = kube_rights.used(server.audit_log, RELEASE_USER)
    # `create`: the Lease is there, since an operator ran; `get`: only after a conflict.
    chance = {("leases", "create"), ("inferencedeployments", "get"), ("kvcachepools", "get")}
    rules = {right for right in kube_rights.granted(hooked) if (right.resource, right.verb) not in chance}
    rules = {right._replace(scope="") if right.scope in TEAMS else right for right in rules}
    used = {right._replace(scope="") if right.scope in TEAMS else right for right in used}
    missing = kube_rights.unused(rules, used)
    assert not missing, "\n".join(map(str, missing))


def own(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The operator's own roles, not those that the chart gives to users."""
    return [one for one in manifests if one["metadata"]["name"] in ("kvcommons-operator", "kvcommons-operator-own")]
