"""`kvcommons status` and `doctor` on a real API server: real definitions, real rights, real refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kube_apiserver import ApiServer
from kube_client import Client
from kvcommons_cli import doctor, status
from kvcommons_core.redis_server import free_port

Manifest = dict[str, Any]
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


def test_a_stranger_is_told_to_log_in(own_apis: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Credentials that the API server does not accept are told as such."""
    file = tmp_path / "kubeconfig"
    file.write_text(own_apis.kubeconfig.read_text().replace(own_apis.token, "another"))
    assert status.main(["--kubeconfig", str(file)]) == 1
    assert "log in to the cluster again" in capsys.readouterr().err
