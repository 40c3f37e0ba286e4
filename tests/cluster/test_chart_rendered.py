"""What the chart renders and what its documentation says, as a real API server takes them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_apiserver import ApiServer
from kube_binaries import Binaries
from kube_chart import CHART, NAMESPACE, RELEASE
from kube_client import ApiError
from kvcommons_core.settings import load_settings
from kvcommons_operator.settings import OperatorSettings

ROOT = CHART.parents[1]
CASES = sorted((ROOT / "charts" / "cases").glob("*.yaml"))
INSTALL = (ROOT / "docs" / "install.md").read_text()
Manifest = dict[str, Any]


def rendered(binaries: Binaries, *options: str) -> list[Manifest]:
    """What helm would install, hooks included."""
    binaries.bring("helm")
    command = [binaries["helm"], "template", RELEASE, str(CHART), "-n", NAMESPACE, "--kube-version", "1.29.0", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Every pod, and one of every template."""
    for one in manifests:
        if one["kind"] == "Pod":
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": one["spec"]}
        elif "template" in one.get("spec", {}):
            spec = one["spec"]["template"]["spec"]
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_pod_of_the_chart_passes_the_strictest_level(
    apiserver: ApiServer, namespace: str, kube_binaries: Binaries, case: Path
) -> None:
    """The operator, helm's test and the job at the end are admitted by a namespace that enforces `restricted`."""
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    apiserver.request("PATCH", f"/api/v1/namespaces/{namespace}", label, "application/merge-patch+json")
    found = list(pods(rendered(kube_binaries, "--values", str(case))))
    assert len(found) == 3
    for pod in found:
        spec = {**pod["spec"]}
        for name in ("priorityClassName", "serviceAccountName"):  # not of this namespace
            spec.pop(name, None)
        apiserver.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", {**pod, "spec": spec})
        loose = {**spec, "securityContext": {}}
        with pytest.raises(ApiError, match="violates PodSecurity"):
            apiserver.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", {**pod, "spec": loose})


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_operator_reads_what_the_chart_tells_it(kube_binaries: Binaries, case: Path) -> None:
    """Every variable that the chart sets is a setting of the operator, with a value that it takes."""
    workload = next(one for one in rendered(kube_binaries, "--values", str(case)) if one["kind"] == "Deployment")
    given = workload["spec"]["template"]["spec"]["containers"][0]["env"]
    environment = {one["name"]: one.get("value", "from-the-pod") for one in given}
    settings = load_settings(OperatorSettings, environ=environment).operator
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert settings.pod_labels.items() <= labels.items(), "NetworkPolicies would not let the operator in"
    assert settings.namespace == NAMESPACE


def test_a_repository_that_names_its_registry_is_left_alone(kube_binaries: Binaries) -> None:
    """`image.registry` goes before plain repositories and folders, not before localhost, a host with a dot, or one with a port."""
    images = {"operator": "localhost/a", "node": "team/b", "router": "127-0-0-1:5000/c"}
    words = [f"images.{name}.repository={repository}" for name, repository in images.items()]
    options = [option for word in (*words, "image.registry=example.com/x/") for option in ("--set", word)]
    deployment = next(one for one in rendered(kube_binaries, *options) if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    named = {one["name"].rpartition("__")[2]: one.get("value", "").rpartition(":")[0] for one in container["env"]}
    assert container["image"].rpartition(":")[0] == "localhost/a"
    assert (named["NODE_IMAGE"], named["ROUTER_IMAGE"]) == ("example.com/x/team/b", "127-0-0-1:5000/c")


def test_what_a_container_of_the_chart_said_last_stands_in_its_status(kube_binaries: Binaries) -> None:
    """Operator, helm's test and the job at the end: where one fails, the end of its log is its termination message."""
    for pod in pods(rendered(kube_binaries)):
        (container,) = pod["spec"]["containers"]
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", INSTALL, re.DOTALL)


def test_the_resources_in_the_installation_guide_are_accepted(own_apis: ApiServer) -> None:
    """Who copies them gets no error from the API server."""
    own_apis.create_namespace("serving")
    found = [one for block in blocks("yaml") for one in yaml.safe_load_all(block)]
    found = [one for one in found if str(one.get("apiVersion")).startswith("kvcommons.io/")]
    assert {one["kind"] for one in found} == {"KVCachePool", "InferenceDeployment"}
    own_apis.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(found))
    own_apis.request("DELETE", "/api/v1/namespaces/serving")


def values_of(node: Manifest, prefix: str = "") -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from values_of(child, f"{prefix}{name}.")


def test_the_values_in_the_installation_guide_exist(kube_binaries: Binaries, tmp_path: Path) -> None:
    """Every --set names a value of the chart, and the file of values for clusters without the internet renders."""
    known = set(values_of(json.loads((CHART / "values.schema.json").read_text())))
    named = re.findall(r"--set[ =]'?([A-Za-z.]+)=", INSTALL)
    assert named
    assert set(named) <= known
    mentioned = re.findall(r"`((?:image|crds|rbac|release|test|metrics)\.[A-Za-z.]+)(?:=[a-z]+)?`", INSTALL)
    assert set(mentioned) <= known
    (offline,) = [block for block in blocks("yaml") if "apiVersion" not in block]
    (tmp_path / "values.yaml").write_text(offline)
    text = json.dumps(rendered(kube_binaries, "--values", str(tmp_path / "values.yaml")))
    assert "ghcr.io" not in text
    assert "docker.io" not in text


def test_files_that_the_installation_guide_links_are_there() -> None:
    """No link of it leads nowhere."""
    for target in re.findall(r"\]\(([^)#]+)", INSTALL):
        assert (ROOT / "docs" / target).exists(), target
