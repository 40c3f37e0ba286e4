"""What `make cluster` tells a stranger to type, and the values that it makes of archives of images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import kube_kept
import pytest

INSTALL = Path(__file__).resolve().parent.parent.parent / "docs" / "install.md"


def archive(folder: Path, name: str, tag: str) -> Path:
    """A docker-archive as far as its names go."""
    path, listing = folder / f"kvcommons-{name}.tar", json.dumps([{"RepoTags": [tag]}]).encode()
    with tarfile.open(path, "w") as made:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(listing)
        made.addfile(entry, io.BytesIO(listing))
    return path


def test_the_commands_that_come_next_are_those_of_the_page() -> None:
    """Everything that `make cluster` says to type stands in docs/install.md, in one piece and in that order."""
    assert "\n".join(kube_kept.NEXT) in INSTALL.read_text()


def test_archives_of_either_builder_become_values_of_the_chart(tmp_path: Path) -> None:
    """The name that an archive gives its image is the one that pods ask for; docker's without a registry is docker.io/library's."""
    archive(tmp_path, "operator", "localhost/kvcommons-operator:1")
    archive(tmp_path, "node", "registry.example.com:5000/team/kvcommons-node:2")
    archive(tmp_path, "router", "kvcommons-router:3")
    values = kube_kept.values_of(kube_kept.references(kube_kept.archives_of(tmp_path)))
    assert kube_kept.image(values, "operator") == "localhost/kvcommons-operator:1"
    assert kube_kept.image(values, "node") == "registry.example.com:5000/team/kvcommons-node:2"
    assert kube_kept.image(values, "router") == "docker.io/library/kvcommons-router:3"
    assert values["image"]["pullPolicy"] == "Never"


def test_a_folder_that_lacks_an_image_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The message names what is missing and the command that makes it."""
    archive(tmp_path, "operator", "localhost/kvcommons-operator:1")
    with pytest.raises(kube_kept.NoImages, match=r"kvcommons-node, kvcommons-router: make images"):
        kube_kept.archives_of(tmp_path)


def test_a_shell_reaches_a_kept_cluster_by_what_is_printed(tmp_path: Path) -> None:
    """Folders with spaces are quoted, and the cluster's programs come first on PATH."""
    text = kube_kept.environment(tmp_path / "a b")
    assert f"export KUBECONFIG='{tmp_path}/a b/kubeconfig'" in text
    assert text.endswith(f"export PATH='{tmp_path}/a b/try/bin':\"$PATH\"")
