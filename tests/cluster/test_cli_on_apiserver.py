"""`kvcommons status` and `doctor` on a real API server: real definitions, real rights, real refusals."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_apiserver import ApiServer
from kube_binaries import Binaries
from kube_client import Client
from kvcommons_cli import doctor, status
from kvcommons_core.redis_server import free_port

Manifest = dict[str, Any]
CHART = Path(__file__).resolve().parents[2] / "charts" / "kvcommons"
RIGHTS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
RENEWED = "2999-01-01T00:00:00.000000Z"
MODEL = {"name": "smollm2", "revision": "0" * 40, "source": {"pvc": {"claimName": "weights"}}}


def words(client: Client, *more: str) -> list[str]:
    return ["--kubeconfig", str(client.kubeconfig), *more]


def told(capsys: pytest.CaptureFixture[str]) -> Manifest:
    answer: Manifest = json.loads(capsys.readouterr().out)
    return answer


def findings(client: Client, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    """What the doctor says of the cluster, as `level about: message`."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    doctor.main([*words(client, *more), "--url", nowhere, "-o", "json"])
    return [f"{one['level']} {one['about']}: {one['message']}" for one in told(capsys)["findings"]]


@pytest.fixture
def resources(own_apis: ApiServer, namespace: str) -> str:
    """A namespace with a pool and a deployment that nobody reconciles."""
    base = {"apiVersion": "kvcommons.io/v1alpha1"}
    wanted = {"placement": "perNode", "tiers": {"memory": {"capacity": "1Gi"}}}
    served = {"model": MODEL, "engine": {"type": "vllm"}, "poolRef": {"name": "shared"}}
    own_apis.apply(
        {**base, "kind": "KVCachePool", "metadata": {"name": "shared"}, "spec": wanted},
        {**base, "kind": "InferenceDeployment", "metadata": {"name": "chat"}, "spec": served},
        namespace=namespace,
    )
    return namespace


def test_what_is_there_is_shown_as_the_api_server_gives_it(
    own_apis: ApiServer, resources: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pool and deployment are in the tables before any operator has looked at them, and that is said."""
    assert status.main(words(own_apis, "-n", resources)) == 0
    text = capsys.readouterr().out
    assert f"{resources}/shared" in text
    assert "not looked at" in text
    assert "`kvcommons doctor` says why" in text
    assert status.main(words(own_apis, "-n", resources, "-o", "json")) == 0
    document = told(capsys)
    assert [one["placement"] for one in document["pools"]] == ["perNode"]
    assert [one["pool"] for one in document["deployments"]] == [f"{resources}/shared"]


def test_the_doctor_finds_what_is_missing(
    own_apis: ApiServer, resources: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Definitions are there; the operator is not, and nobody has looked at the resources."""
    own_apis.request(
        "PATCH",
        f"/api/v1/namespaces/{resources}",
        {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}},
        "application/merge-patch+json",
    )
    found = findings(own_apis, capsys, "-n", resources)
    assert "ok kvcachepools.kvcommons.io: v1alpha1 is served" in found
    assert "ok inferenceroles.kvcommons.io: v1alpha1 is served" in found
    assert any(one.startswith("ok your rights: ") for one in found)
    assert f"problem KVCachePool {resources}/shared: the operator has not looked at it" in found
    assert any(f"problem namespace {resources}: it enforces PodSecurity level baseline" in one for one in found)


def test_a_user_of_one_namespace_sees_it_and_learns_what_is_hidden(
    own_apis: ApiServer, resources: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With rights to read in one namespace status works there; the doctor says which rights are missing."""
    own_apis.kubectl("create", "serviceaccount", "reader", "--namespace", resources)
    rule = ["--verb=get,list", "--resource=kvcachepools.kvcommons.io,inferencedeployments.kvcommons.io,pods"]
    own_apis.kubectl("create", "role", "reader", *rule, "--namespace", resources)
    account = f"--serviceaccount={resources}:reader"
    own_apis.kubectl("create", "rolebinding", "reader", "--role=reader", account, "--namespace", resources)
    reader = own_apis.as_account(resources, "reader")
    assert status.main(words(reader)) == 1
    assert "ask for the right" in capsys.readouterr().err
    assert status.main(words(reader, "-n", resources)) == 0
    assert f"{resources}/chat" in capsys.readouterr().out
    found = findings(reader, capsys, "-n", resources)
    assert any(one.startswith(f"warning your rights: you may not get pods/proxy in {resources}") for one in found), (
        found
    )
    assert "ok kvcachepools.kvcommons.io: v1alpha1 is served" in found
    assert any("were not looked" in one or "it was not looked for" in one for one in found)
    assert f"problem InferenceDeployment {resources}/chat: the operator has not looked at it" in found


def rendered(binaries: Binaries, release: str, *values: str) -> list[Manifest]:
    """What the chart gives the operator: its account and its rules, rendered by helm."""
    binaries.bring("helm")
    options = [option for value in ("crds.install=false", *values) for option in ("--set", value)]
    command = [binaries["helm"], "template", release, str(CHART), "--namespace", release, "--kube-version", "1.31.0"]
    text = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=60).stdout
    return [one for one in yaml.safe_load_all(text) if one and one["kind"] in RIGHTS]


def operator_pod(namespace: str, account: str, looked_after: str) -> Manifest:
    variables = [
        {"name": "KVCOMMONS_OPERATOR__NAMESPACES", "value": looked_after},
        {"name": "KVCOMMONS_OPERATOR__LEASE_NAME", "value": "elected-here"},
    ]
    labels = {"app.kubernetes.io/name": "kvcommons-operator", "app.kubernetes.io/part-of": "kvcommons"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator-0", "namespace": namespace, "labels": labels},
        "spec": {
            "serviceAccountName": account,
            "containers": [{"name": "operator", "image": "operator:test", "env": variables}],
        },
    }


@pytest.mark.parametrize("scope", ["cluster", "namespace"])
def test_the_rights_that_the_chart_gives_are_those_that_the_doctor_asks_for(
    scope: str,
    own_apis: ApiServer,
    namespace: str,
    kube_binaries: Binaries,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An operator installed by the chart has what it needs, in both scopes; without its binding it is told what is missing."""
    manifests = rendered(kube_binaries, namespace, f"rbac.scope={scope}")
    own_apis.apply(*manifests)
    account = next(one["metadata"]["name"] for one in manifests if one["kind"] == "ServiceAccount")
    own_apis.apply(operator_pod(namespace, account, namespace if scope == "namespace" else ""))
    user = f"system:serviceaccount:{namespace}:{account}"
    try:
        found = findings(own_apis, capsys)
        assert f"ok operator's rights: {user} may do what the operator does" in found
        assert f"problem operator: no leader has been elected in {namespace}" in found
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "elected-here"}}
        lease["spec"] = {"holderIdentity": "operator-0", "leaseDurationSeconds": 15, "renewTime": RENEWED}
        own_apis.apply(lease, namespace=namespace)
        for one in (one for one in manifests if one["kind"].endswith("Binding")):
            own_apis.kubectl("delete", one["kind"], one["metadata"]["name"], "--namespace", namespace)
        found = findings(own_apis, capsys)
        assert "ok operator: operator-0 leads" in found
        assert any(one.startswith(f"problem operator's rights: {user} may not list kvcachepools") for one in found)
    finally:
        for one in (one for one in manifests if one["kind"].startswith("Cluster")):
            own_apis.kubectl("delete", one["kind"], one["metadata"]["name"], "--ignore-not-found")
        own_apis.kubectl("delete", "pod", "operator-0", "--namespace", namespace, "--force", "--grace-period=0")


def test_a_stranger_is_told_to_log_in(own_apis: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Credentials that the API server does not accept are told as such."""
    file = tmp_path / "kubeconfig"
    file.write_text(own_apis.kubeconfig.read_text().replace(own_apis.token, "another"))
    assert status.main(["--kubeconfig", str(file)]) == 1
    assert "log in to the cluster again" in capsys.readouterr().err
