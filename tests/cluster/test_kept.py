"""The plain manifests with an overlay as docs/install.md shows it, put into an API server by kubectl."""

from __future__ import annotations

import os
import re
from pathlib import Path

import kube_chart
import kube_kept
import yaml
from kube_apiserver import ApiServer

INSTALL = (kube_kept.ROOT / "docs" / "install.md").read_text()


def test_an_overlay_of_the_plain_manifests_brings_its_images(apiserver: ApiServer, tmp_path: Path) -> None:
    """`kubectl apply -k` of the overlay is accepted, and the operator in it has the overlay's images and all its other settings."""
    for name, document in kube_kept.overlay(kube_chart.LOCAL_IMAGES, tmp_path.resolve()).items():
        (tmp_path / name).write_text(yaml.safe_dump(document))
    text = apiserver.kubectl("kustomize", str(tmp_path))
    deployment = next(one for one in yaml.safe_load_all(text) if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert container["image"] == "localhost/kvcommons-operator:test"
    assert variables["KVCOMMONS_OPERATOR__NODE_IMAGE"] == "localhost/kvcommons-node:test"
    assert variables["KVCOMMONS_OPERATOR__NAMESPACE"] == "kvcommons-system"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kvcommons-system"}}
    apiserver.apply(namespace)
    apiserver.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k", str(tmp_path))


def test_the_guide_s_overlay_renders(apiserver: ApiServer, tmp_path: Path) -> None:
    """Who copies the two files of docs/install.md gets the operator with the images that they name."""
    (block,) = [text for text in re.findall(r"```yaml\n(.*?)```", INSTALL, re.DOTALL) if "kustomization.yaml" in text]
    kustomization, patch = yaml.safe_load_all(block)
    kustomization["resources"] = [os.path.relpath(kube_kept.ROOT / "charts" / "kustomize", tmp_path.resolve())]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (tmp_path / "operator.yaml").write_text(yaml.safe_dump(patch))
    text = apiserver.kubectl("kustomize", str(tmp_path))
    assert text.count("registry.example.com/kvcommons/kvcommons-") == 3
    assert "KVCOMMONS_OPERATOR__LEASE_NAME" in text
