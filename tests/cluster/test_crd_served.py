"""What people see of the resources on a real API server: explain, defaults, columns, scale, examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from crd_case import BASES, DEPLOYMENT, POOL, ROLE, path_of
from crd_server import establish, send
from kube_apiserver import ApiServer
from kube_client import MERGE_PATCH, ApiError, KubectlError
from kvcommons_operator.api import InferenceDeployment, InferenceRole, KVCachePool, Resource, parse
from kvcommons_operator.crd.definitions import definitions

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
TRANSITION = "2026-01-02T03:04:05Z"


@pytest.fixture(scope="module")
def server(apiserver: ApiServer) -> ApiServer:
    """The API server with our definitions."""
    establish(apiserver)
    return apiserver


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """(path as in the published documentation, description) of each field."""
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}", part.get("description", "")
        yield from fields(part, f"{path}.{name}")
    for child in ("items", "additionalProperties"):
        if isinstance(schema.get(child), dict):
            yield from fields(schema[child], path)


def test_kubectl_explain_teaches_every_field(server: ApiServer) -> None:
    """The API server publishes our sentence for each field, and kubectl shows it by the short name."""
    published = server.request("GET", "/openapi/v3/apis/kvcommons.io/v1alpha1")["components"]["schemas"]
    for crd in definitions().values():
        kind = crd["spec"]["names"]["kind"]
        ours = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        theirs = next(schema for name, schema in published.items() if name.endswith(f".v1alpha1.{kind}"))["properties"]
        for part in ("spec", "status"):
            assert dict(fields(theirs[part], part)) == dict(fields(ours[part], part))
            assert all(text for _, text in fields(theirs[part], part))
    shown = server.kubectl("explain", "kvcp.spec.placement")
    assert "FIELD: placement <string>" in shown
    assert "runs under Pod Security level" in shown
    assert "Which weights" not in server.kubectl("explain", "ifd.spec.model.revision")


@pytest.mark.parametrize("kind", list(BASES), ids=lambda kind: kind.KIND)
def test_the_api_server_fills_in_the_defaults_of_the_models(server: ApiServer, kind: type[Resource]) -> None:
    """What is stored of the least spec is what the model makes of it, field by field."""
    stored = send(server, kind, "default", BASES[kind]).stored
    assert stored is not None
    own = parse(kind, stored).model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]
    assert _texts(stored["spec"]) == _texts(own)


def _texts(value: object) -> object:
    """Quantities may be numbers; the model has them as text."""
    if isinstance(value, dict):
        return {key: _texts(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_texts(part) for part in value]
    return value


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_taken(server: ApiServer, namespace: str, path: Path) -> None:
    """kubectl applies every example, strictly, and applies it again without a change."""
    text = path.read_text().replace("kind: Namespace\n", "kind: ConfigMap\n")
    documents = [document for document in yaml.safe_load_all(text) if document["kind"] != "ConfigMap"]
    for document in documents:
        document["metadata"]["namespace"] = namespace
    manifest = yaml.safe_dump_all(documents)
    first = server.kubectl("apply", "--validate=strict", "-f", "-", stdin=manifest)
    assert first.count("created") == len(documents)
    again = server.kubectl("apply", "--validate=strict", "-f", "-", stdin=manifest)
    assert again.count("unchanged") == len(documents)


@pytest.mark.parametrize(
    ("kind", "spec"), [(InferenceDeployment, DEPLOYMENT), (InferenceRole, ROLE)], ids=["ifd", "ifr"]
)
def test_kubectl_scales(server: ApiServer, namespace: str, kind: type[Resource], spec: dict[str, Any]) -> None:
    """`kubectl scale` writes spec.replicas, and an autoscaler reads the number and the selector from the scale."""
    assert send(server, kind, namespace, spec, name="s", dry=False).stored is not None
    path = path_of(kind, namespace, "s")
    server.kubectl("scale", f"{kind.PLURAL}/s", "--replicas=3", "-n", namespace)
    assert server.request("GET", path)["spec"]["replicas"] == 3
    status = {"status": {"replicas": 2, "selector": "kvcommons.io/deployment=s"}}
    server.request("PATCH", f"{path}/status", status, MERGE_PATCH)
    scale = server.request("GET", f"{path}/scale")
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "kvcommons.io/deployment=s"}


def test_an_autoscaler_owns_replicas_although_the_manifest_is_applied_again(server: ApiServer, namespace: str) -> None:
    """A manifest without `replicas` takes nothing back from who scaled, by either way of applying."""
    manifest = {
        "apiVersion": "kvcommons.io/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "s"},
        "spec": DEPLOYMENT,
    }
    for arguments in ((), ("--server-side", "--force-conflicts")):
        text = yaml.safe_dump(manifest)
        server.kubectl("apply", *arguments, "-n", namespace, "-f", "-", stdin=text)
        server.kubectl("scale", "ifd/s", "--replicas=5", "-n", namespace)
        manifest["metadata"]["labels"] = {"again": "-".join(arguments).strip("-") or "client"}  # type: ignore[index]
        server.kubectl("apply", *arguments, "-n", namespace, "-f", "-", stdin=yaml.safe_dump(manifest))
        assert server.request("GET", path_of(InferenceDeployment, namespace, "s"))["spec"]["replicas"] == 5


def test_scaling_what_has_roles_is_refused_with_the_remedy(server: ApiServer, namespace: str) -> None:
    """With roles the deployment's own scale would do nothing: it says which object to scale."""
    spec = {**DEPLOYMENT, "poolRef": {"name": "p"}, "roles": {"prefill": {}, "decode": {}}}
    assert send(server, InferenceDeployment, namespace, spec, name="r", dry=False).stored is not None
    with pytest.raises(KubectlError, match="scale the InferenceRoles instead"):
        server.kubectl("scale", "ifd/r", "--replicas=2", "-n", namespace)


def test_kubectl_get_shows_what_matters(server: ApiServer, namespace: str) -> None:
    """Short names and the category work; columns show spec and status, and more with -o wide."""
    send(server, KVCachePool, namespace, POOL, name="p", dry=False)
    send(server, InferenceDeployment, namespace, {**DEPLOYMENT, "poolRef": {"name": "p"}}, name="d", dry=False)
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": "NoNodes",
        "message": "no node",
        "lastTransitionTime": TRANSITION,
    }
    status = {"status": {"nodes": {"ready": 1, "desired": 2}, "hitPercent": 42, "conditions": [ready]}}
    server.request("PATCH", f"{path_of(KVCachePool, namespace, 'p')}/status", status, MERGE_PATCH)
    head, row = server.kubectl("get", "kvcp", "-n", namespace).splitlines()
    assert head.split() == ["NAME", "PLACEMENT", "MEMORY", "NODES", "DESIRED", "HIT%", "READY", "AGE"]
    assert row.split()[:7] == ["p", "sidecar", "1Gi", "1", "2", "42", "False"]
    wide = server.kubectl("get", "kvcp", "-n", namespace, "-o", "wide")
    assert "NoNodes" in wide
    assert "no node" in wide
    assert "NoNodes" not in row
    everything = server.kubectl("get", "kvcommons", "-n", namespace)
    assert "kvcachepool.kvcommons.io/p" in everything
    assert "inferencedeployment.kvcommons.io/d" in everything
    assert server.kubectl("get", "ifr", "-n", namespace) == ""


def test_a_status_changes_no_generation_and_is_checked_too(server: ApiServer, namespace: str) -> None:
    """The status is a subresource: writing it is no change of the spec, and a bad reason is refused."""
    send(server, KVCachePool, namespace, POOL, name="p", dry=False)
    path = path_of(KVCachePool, namespace, "p")
    condition = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": TRANSITION}
    whole = server.request("PATCH", f"{path}/status", {"status": {"conditions": [condition]}}, MERGE_PATCH)
    assert whole["metadata"]["generation"] == 1
    with pytest.raises(ApiError) as refused:
        server.request(
            "PATCH", f"{path}/status", {"status": {"conditions": [condition | {"reason": "not_camel"}]}}, MERGE_PATCH
        )
    assert "status.conditions[0].reason" in json.loads(refused.value.body)["message"]
