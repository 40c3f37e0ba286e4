"""What `make cluster` brings to try the project on: images in the nodes, files for helm and kubectl, and the commands that come next."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import kube_product
import kube_served
import yaml
from kube_apiserver import ApiServer
from kube_chart import LOCAL_IMAGES
from kube_cluster import Cluster

ROOT = Path(__file__).resolve().parent.parent
FILES = "try"
READY = "ready"
VARIABLE = "KVCOMMONS_TRY"
NAMESPACE, NAME = "serving", "chat"
REPOSITORY = "kvcommons-"
# As docs/install.md has them, under "On one machine": a test holds the two together.
HELM = (
    "helm install kvcommons charts/kvcommons --namespace kvcommons-system --create-namespace --wait \\",
    '  --values "$KVCOMMONS_TRY/values.yaml"',
)
NEXT = (
    'eval "$(make -s cluster ARGS=env)"',
    *HELM,
    "helm test kvcommons --namespace kvcommons-system",
    "kubectl create namespace serving",
    "kubectl label namespace serving pod-security.kubernetes.io/enforce=restricted",
    'kubectl --namespace serving apply -f "$KVCOMMONS_TRY/volumes.yaml" -f "$KVCOMMONS_TRY/chat.yaml"',
    "kubectl --namespace serving wait --for=condition=Ready ifd/chat --timeout=30m",
    "kvcommons status",
)


LAST_LINE = "It runs until Ctrl-C, or until `make cluster ARGS=stop` is called elsewhere."


class NoImages(Exception):
    """A folder of archives has not what the chart needs; the message says what to do."""


def references(archives: Iterable[Path]) -> dict[str, str]:
    """By name (operator, node, router): the reference that an archive of `make images ARGS="--save DIR"` gives its image."""
    found: dict[str, str] = {}
    for path in archives:
        with tarfile.open(path) as archive:
            listing = archive.extractfile("manifest.json")
            assert listing is not None
            tags = [tag for image in json.load(listing) for tag in image["RepoTags"]]
        for tag in tags:
            last = tag.rpartition("/")[2].partition(":")[0]
            found |= {name: tag for name in kube_product.NAMES if last == REPOSITORY + name}
    return found


def values_of(found: dict[str, str]) -> dict[str, Any]:
    """Values of the chart for images that are in the nodes already."""
    missing = [name for name in kube_product.NAMES if name not in found]
    if missing:
        names = ", ".join(REPOSITORY + name for name in missing)
        raise NoImages(f'no archive holds {names}: make images ARGS="--save DIR", and give that DIR')
    images: dict[str, Any] = {}
    for name, reference in found.items():
        repository, _, tag = reference.rpartition(":")
        # containerd keeps a name without a registry under Docker's.
        whole = repository if "/" in repository else f"docker.io/library/{repository}"
        images[name] = {"repository": whole, "tag": tag}
    images["index"] = kube_product.REDIS_IMAGE
    return {"image": {"pullPolicy": "Never"}, "images": images}


def archives_of(folder: Path) -> list[Path]:
    """What a folder has, looked at before anything starts."""
    found = sorted(folder.glob(f"{REPOSITORY}*.tar"))
    values_of(references(found))
    return found


def load(cluster: Cluster, archives: Sequence[Path] | None) -> dict[str, Any]:
    """Images into both nodes: given ones, or put together here; with stand-ins of the engine and of Redis. The chart's values."""
    paths = list(archives) if archives is not None else kube_product.images(cluster.folder)
    values = values_of(references(paths)) if archives is not None else LOCAL_IMAGES
    paths.append(kube_product.engine_archive(cluster.folder / "engine.tar"))
    paths.append(kube_product.redis_archive(cluster.folder / "redis.tar"))
    for path in paths:
        cluster.import_image(path)
        if path.is_relative_to(cluster.folder):
            path.unlink()
    return values


def image(values: dict[str, Any], name: str) -> str:
    """An image as the chart makes it of its values."""
    given = values["images"][name]
    registry = values["image"].get("registry", "")
    repository = given.get("repository", REPOSITORY + name)
    return f"{registry}/{repository}:{given['tag']}" if registry else f"{repository}:{given['tag']}"


def overlay(values: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Files of a kustomization over the plain manifests that takes the images of the values, as docs/install.md shows it."""
    variables = {
        "KVCOMMONS_OPERATOR__NODE_IMAGE": image(values, "node"),
        "KVCOMMONS_OPERATOR__ROUTER_IMAGE": image(values, "router"),
        "KVCOMMONS_OPERATOR__REDIS_IMAGE": values["images"]["index"],
        "KVCOMMONS_OPERATOR__IMAGE_PULL_POLICY": "Never",
    }
    container = {
        "name": "operator",
        "image": image(values, "operator"),
        "imagePullPolicy": "Never",
        "env": [{"name": name, "value": value} for name, value in variables.items()],
    }
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "kvcommons-operator", "namespace": "kvcommons-system"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(ROOT / "charts" / "kustomize", folder)],
        "patches": [{"path": "operator.yaml"}],
    }
    return {"kustomization.yaml": kustomization, "operator.yaml": patch}


def served() -> list[dict[str, Any]]:
    """A pool and a deployment like those of docs/install.md, with the engine and the model of this machine."""
    deployment = kube_served.deployment(NAME)
    return [kube_served.pool("sidecar"), deployment]


def volumes() -> list[dict[str, Any]]:
    """What stands for an engine's image and its model: folders of this machine."""
    model = kube_product.HostFolder("model", kube_product.model_folder(), "/models")
    folders = (*kube_product.host_folders(), model)
    return [
        *(made for folder in folders for made in folder.manifests(NAMESPACE)),
        kube_product.hiding_manifest(NAMESPACE),
    ]


def write(server: ApiServer, values: dict[str, Any] | None) -> Path:
    """All files, and the programs by their plain names."""
    folder = server.folder / FILES
    (folder / "bin").mkdir(parents=True)
    programs = {name: server.binaries[name] for name in ("kubectl", "helm")}
    programs["kvcommons"] = str(Path(sys.prefix) / "bin" / "kvcommons")
    for name, path in programs.items():
        (folder / "bin" / name).symlink_to(path)
    if values is not None:
        plain = folder / "kustomize"
        plain.mkdir()
        files: dict[str, list[dict[str, Any]]] = {
            "values.yaml": [values],
            "volumes.yaml": volumes(),
            "chat.yaml": served(),
            **{f"kustomize/{name}": [document] for name, document in overlay(values, plain).items()},
        }
        for name, documents in files.items():
            (folder / name).write_text(yaml.safe_dump_all(documents, sort_keys=False))
    (folder / READY).touch()
    return folder


def environment(folder: Path) -> str:
    """What a shell runs to reach a kept cluster."""
    files = folder / FILES
    lines = {"KUBECONFIG": folder / "kubeconfig", VARIABLE: files}
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in lines.items()]
    return "\n".join([*exports, f'export PATH={shlex.quote(str(files / "bin"))}:"$PATH"'])


def next_steps() -> str:
    """What to type, in a second terminal."""
    where = shlex.quote(str(ROOT))
    return "\n".join(
        [
            'In another terminal (docs/install.md, "On one machine"):',
            f"  cd {where}",
            *(f"  {line}" for line in NEXT),
            LAST_LINE,
        ]
    )
