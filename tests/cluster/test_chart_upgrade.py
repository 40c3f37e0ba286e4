"""The chart through its releases: CRDs are upgraded with it, and stay when it goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_apiserver import ApiServer
from kube_binaries import Binaries
from kube_chart import CHART, NAMESPACE, RELEASE, Helm
from kube_client import ApiError
from kube_process import wait_for
from operator_process import POOLS, Place, pool

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/kvcachepools.kvcommons.io"
TEAM = "team"


@pytest.fixture(scope="module")
def alone(kube_binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of these tests alone: CRDs are the whole cluster's."""
    kube_binaries.bring("etcd", "kube-apiserver", "kubectl", "helm")
    server = ApiServer(tmp_path_factory.mktemp("apiserver"), kube_binaries)
    try:
        server.start()
        server.create_namespace(TEAM)
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(alone: ApiServer) -> Iterator[ApiServer]:
    """Without a trace of the test before."""
    yield alone
    helm = Helm(alone)
    for release in json.loads(helm.run("list", "-n", NAMESPACE, "-o", "json")):
        helm.run("uninstall", release["name"], "-n", NAMESPACE, "--no-hooks")
    alone.wipe("/registry/kvcommons.io/", "/registry/apiextensions.k8s.io/customresourcedefinitions/")
    wait_for(lambda: "kvcommons.io" not in str(alone.request("GET", "/apis")), "the API is served no more", 30.0)


def previous_chart(folder: Path) -> Path:
    """The release before this one: its pools know no `logLevel`, and its operator is another version."""
    chart = folder / "previous"
    shutil.copytree(CHART, chart)
    path = chart / "files" / "crds" / "kvcachepools.yaml"
    crd = yaml.safe_load(path.read_text())
    for version in crd["spec"]["versions"]:
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        del spec["properties"]["logLevel"]
    path.write_text(yaml.safe_dump(crd))
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": "0.0.9", "appVersion": "0.0.9"}))
    return chart


def install(helm: Helm, chart: Path, *options: str, release: str = RELEASE) -> None:
    """Without waiting: on an API server alone nothing becomes ready."""
    helm.run("upgrade", release, str(chart), "--install", "-n", NAMESPACE, "--create-namespace", *options)
    crds = [f"crd/{plural}.kvcommons.io" for plural in ("kvcachepools", "inferencedeployments", "inferenceroles")]
    helm.server.kubectl("wait", "--for=condition=Established", *crds, "--timeout=30s")


def properties(server: ApiServer) -> dict[str, Any]:
    """The fields of a pool's spec, as the API server knows them."""
    versions = server.request("GET", CRD)["spec"]["versions"]
    found: dict[str, Any] = versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return found


def test_an_upgrade_brings_the_new_crds_and_keeps_what_is_there(server: ApiServer, tmp_path: Path) -> None:
    """From the release before: pools stay as they are, and then take the new release's fields."""
    helm, team = Helm(server), Place(server, TEAM)
    install(helm, previous_chart(tmp_path))
    team.apply(pool())
    uid = team.have(POOLS, "pool")["metadata"]["uid"]
    assert "logLevel" not in properties(server)
    install(helm, CHART)
    assert "logLevel" in properties(server)
    assert server.request("GET", CRD)["metadata"]["labels"]["helm.sh/chart"].endswith("0.1.0")
    team.merge(POOLS, "pool", {"spec": {"logLevel": "debug"}})
    seen = team.have(POOLS, "pool")
    assert (seen["metadata"]["uid"], seen["spec"]["logLevel"]) == (uid, "debug")


def test_the_crds_and_all_pools_outlive_the_chart(server: ApiServer) -> None:
    """`helm uninstall` takes the operator and leaves the resources. Another release is refused the CRDs, until that is asked for; the
    same one takes them over again."""
    helm, team = Helm(server), Place(server, TEAM)
    install(helm, CHART)
    team.apply(pool())
    helm.run("uninstall", RELEASE, "-n", NAMESPACE, "--no-hooks")
    assert team.get(POOLS, "pool") is not None
    with pytest.raises(ApiError, match="404"):
        server.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/kvcommons-operator")
    with pytest.raises(AssertionError, match="invalid ownership metadata"):
        install(helm, CHART, release="other")
    install(helm, CHART)
    helm.run("uninstall", RELEASE, "-n", NAMESPACE, "--no-hooks")
    install(helm, CHART, "--take-ownership", release="other")
    assert team.get(POOLS, "pool") is not None


def test_without_keeping_they_go_with_the_chart(server: ApiServer) -> None:
    """crds.keep=false is for clusters that are thrown away: CRDs and pools go."""
    helm, team = Helm(server), Place(server, TEAM)
    install(helm, CHART, "--set", "crds.keep=false")
    team.apply(pool())
    helm.run("uninstall", RELEASE, "-n", NAMESPACE, "--no-hooks")
    team.gone(POOLS, "pool")


def test_a_wrong_value_is_refused_before_anything_is_made(server: ApiServer) -> None:
    """A value that the schema does not know or allow is named by its path."""
    helm = Helm(server)
    for option, said in (
        ("rbac.scope=team", "rbac"),
        ("operator.replica=3", "replica"),
        ("images.node.digest=sha256:1", "digest"),
        ("operator.leaseSeconds=1", "leaseSeconds"),
    ):
        with pytest.raises(AssertionError, match=said):
            install(helm, CHART, "--set", option)
    assert json.loads(helm.run("list", "-A", "-o", "json")) == []


def test_plain_manifests_install_the_same(server: ApiServer) -> None:
    """`kubectl apply -k` makes the namespace, the CRDs and an operator with the chart's rules."""
    plain = CHART.parent / "kustomize"
    server.kubectl("apply", "--server-side", "-k", str(plain))
    server.kubectl("wait", "--for=condition=Established", "crd/kvcachepools.kvcommons.io", "--timeout=30s")
    server.kubectl("apply", "--server-side", "-k", str(plain))
    found = server.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/kvcommons-operator")
    assert found["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "kustomize"
    assert server.request("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/kvcommons-operator")["rules"]
