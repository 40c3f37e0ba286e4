"""The API server itself judges what the builders make: no stand-in knows its validation, its defaults and Pod Security."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import operator_cases as cases
import operator_examples as examples
import pytest
import yaml
from kube_apiserver import ApiServer
from kube_client import ApiError
from kube_process import wait_for
from kvcommons_operator import names
from kvcommons_operator.kube.kinds import OPTIONAL, kind_of
from kvcommons_operator.observed import Manifest, Ref
from kvcommons_operator.plan import plan_deployment, plan_pool

ROOT = Path(__file__).resolve().parents[2]
APPLY = "application/apply-patch+yaml"
FORCED = f"fieldManager={names.FIELD_MANAGER}&force=true"
ESTABLISHED_SECONDS_MAX = 30.0
RANDOM_SEEDS = int(os.environ.get("KVCOMMONS_BUILD_SEEDS", "12"))


@pytest.fixture(scope="module")
def server(apiserver: ApiServer) -> Iterator[ApiServer]:
    """The API server with our own kinds, the optional ones (without a schema) and the namespaces of the examples."""
    made = [path_of(crd) for crd in definitions()]
    for crd in (*definitions(), *yaml.safe_load_all((ROOT / "crds" / "inferenceroles.yaml").read_text())):
        apiserver.apply(crd)
        wait_for(partial(established, apiserver, path_of(crd)), f"{path_of(crd)} is served", ESTABLISHED_SECONDS_MAX)
    for name, level in (("llm", "privileged"), ("team-a", "privileged"), ("tight", "restricted")):
        apiserver.create_namespace(name, {"pod-security.kubernetes.io/enforce": level})
    yield apiserver
    for path in [*made, *(f"/api/v1/namespaces/{name}" for name in ("llm", "team-a", "tight"))]:
        apiserver.request("DELETE", path)


def path_of(crd: Manifest) -> str:
    return f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"


def established(server: ApiServer, path: str) -> bool:
    told = (server.request("GET", path).get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in told)


def definitions() -> list[Manifest]:
    """CustomResourceDefinitions of what the examples need and a bare API server has not; any content will do."""
    loose = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    found = []
    for kind in OPTIONAL:
        version = {"name": kind.version, "served": True, "storage": True, "schema": {"openAPIV3Schema": loose}}
        found.append(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                # The API server guards names under k8s.io; this is the word that lets a test use them.
                "metadata": {
                    "name": f"{kind.plural}.{kind.group}",
                    "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
                },
                "spec": {
                    "group": kind.group,
                    "scope": "Namespaced",
                    "names": {"plural": kind.plural, "kind": kind.name},
                    "versions": [version],
                },
            }
        )
    return found


def applied(server: ApiServer, manifest: Manifest, *, dry: bool = True) -> Manifest:
    """The object that the API server makes of a manifest, by server-side apply."""
    metadata = manifest["metadata"]
    path = kind_of(manifest).path(metadata["namespace"], metadata["name"])
    body = {key: value for key, value in manifest.items() if key != "status"}
    query = FORCED + ("&dryRun=All&fieldValidation=Strict" if dry else "&fieldValidation=Strict")
    answer: Manifest = server.request("PATCH", f"{path}?{query}", body, APPLY)
    return answer


def test_the_api_server_takes_every_manifest_of_every_example(server: ApiServer) -> None:
    """Names, labels, ports, quantities, probes and selectors are valid, and no field is unknown."""
    refused = []
    for name, manifests in cases.built():
        for manifest in manifests:
            try:
                applied(server, manifest)
            except ApiError as error:
                refused.append(f"{name}: {manifest['kind']} {manifest['metadata']['name']}: {error}")
    assert not refused


@pytest.mark.parametrize("seed", range(RANDOM_SEEDS))
def test_the_api_server_takes_every_manifest_of_random_resources(server: ApiServer, seed: int) -> None:
    """What the resources' own rules let through makes children that Kubernetes lets through."""
    refused = []
    for manifest in cases.random_children(seed):
        try:
            applied(server, manifest)
        except ApiError as error:
            refused.append(f"{manifest['kind']} {manifest['metadata']['name']}: {error}")
    assert not refused


def pod_of(template: Manifest, namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "probe", "namespace": namespace},
        "spec": template["spec"],
    }


def templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for one in manifests:
        if "template" in (one.get("spec") or {}):
            yield f"{one['kind']} {one['metadata']['name']}", one["spec"]["template"]


def dry_pod(server: ApiServer, template: Manifest, namespace: str) -> Manifest:
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict"
    answer: Manifest = server.request("POST", path, pod_of(template, namespace))
    return answer


def sidecar_children() -> list[Manifest]:
    sidecar = examples.pool(placement="sidecar", index={"managed": {"replicas": 3}})
    pool = plan_pool(sidecar, examples.pool_world()).apply
    return [*pool, *plan_deployment(examples.deployment(), examples.world(pool=sidecar)).apply]


def test_pods_of_a_sidecar_pool_run_where_restricted_is_enforced(server: ApiServer) -> None:
    """The API server admits engines with their cache nodes, routers and the index under Pod Security level restricted."""
    found = dict(templates(sidecar_children()))
    assert len(found) == 3
    for template in found.values():
        assert dry_pod(server, template, "tight")["metadata"]["name"] == "probe"


def test_per_node_is_refused_under_restricted_and_the_pool_says_so(server: ApiServer) -> None:
    """A hostPath is what keeps perNode out of a restricted namespace, and the pool's condition names the level it needs."""
    plan = plan_pool(examples.pool(), examples.pool_world())
    (template,) = [found for name, found in templates(list(plan.apply)) if name.startswith("DaemonSet")]
    with pytest.raises(ApiError, match="hostPath"):
        dry_pod(server, template, "tight")
    assert dry_pod(server, template, "llm")
    assert "privileged" in examples.condition(plan.status, "Accepted")["message"]


def test_applying_again_changes_nothing(server: ApiServer) -> None:
    """A second server-side apply of the same wish leaves every object as it was: no version is spent on nothing."""
    children = [one for one in sidecar_children() if "ownerReferences" in one["metadata"]]
    first = {Ref.of(one): applied(server, one, dry=False)["metadata"]["resourceVersion"] for one in children}
    second = {Ref.of(one): applied(server, one, dry=False)["metadata"]["resourceVersion"] for one in children}
    assert first == second


def scaled(server: ApiServer, workload: Manifest, replicas: int) -> None:
    path = kind_of(workload).path(workload["metadata"]["namespace"], workload["metadata"]["name"], "scale")
    body = {"spec": {"replicas": replicas}}
    server.request("PATCH", f"{path}?fieldManager=autoscaler", body, "application/merge-patch+json")


def engines(server: ApiServer, ifd: Manifest) -> Manifest:
    """One look of the operator: observe the live workload, plan, apply it."""
    path = "/apis/apps/v1/namespaces/llm/deployments"
    found = server.request("GET", f"{path}?fieldSelector=metadata.name=scaled-engine")["items"]
    children = {Ref("apps/v1", "Deployment", "llm", "scaled-engine"): one for one in found}
    plan = plan_deployment(ifd, examples.world(children=children))
    return applied(server, examples.named(plan.apply, "Deployment", "scaled-engine"), dry=False)


def test_an_autoscaler_and_the_operator_never_both_write_replicas(server: ApiServer) -> None:
    """What the autoscaler writes stays, through drift repair and another `kubectl apply` of the resource; without it the
    resource's own number is in force again."""
    auto = examples.deployment("scaled", autoscaling=cases.CPU, replicas=2)
    assert engines(server, auto)["spec"]["replicas"] == 2
    assert engines(server, auto)["spec"]["replicas"] == 2
    scaled(server, engines(server, auto), 4)
    assert engines(server, auto)["spec"]["replicas"] == 4
    again = copy.deepcopy(auto)
    again["spec"]["replicas"] = 1
    again["spec"]["engine"]["args"] = ["--max-model-len=1024"]
    found = engines(server, again)
    assert found["spec"]["replicas"] == 4
    assert "--max-model-len=1024" in json.dumps(found["spec"]["template"])
    alone = {**again, "spec": {key: value for key, value in again["spec"].items() if key != "autoscaling"}}
    assert engines(server, alone)["spec"]["replicas"] == 1


def test_handing_replicas_over_to_an_autoscaler_keeps_their_number(server: ApiServer) -> None:
    """Engines that run are not scaled to one when autoscaling is switched on, before or after the autoscaler's first word."""
    plain: dict[str, Any] = examples.deployment("scaled", replicas=3)
    assert engines(server, plain)["spec"]["replicas"] == 3
    auto = examples.deployment("scaled", replicas=3, autoscaling=cases.CPU)
    assert engines(server, auto)["spec"]["replicas"] == 3
    scaled(server, engines(server, auto), 2)
    assert [engines(server, auto)["spec"]["replicas"] for _ in range(2)] == [2, 2]


def test_a_stale_look_can_not_undo_the_autoscaler(server: ApiServer) -> None:
    """While the operator still keeps the number, its apply is bound to the version that it saw."""
    auto = examples.deployment("scaled", replicas=3, autoscaling=cases.CPU)
    server.request("DELETE", "/apis/apps/v1/namespaces/llm/deployments/scaled-engine")
    stale = engines(server, auto)
    scaled(server, stale, 4)
    plan = plan_deployment(auto, examples.world(children={Ref.of(stale): stale}))
    with pytest.raises(ApiError) as refused:
        applied(server, examples.named(plan.apply, "Deployment", "scaled-engine"), dry=False)
    assert refused.value.status == 409
