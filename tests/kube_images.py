"""Images for a test cluster, put together here from files: no registry, no Docker."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def write_archive(target: Path, name: str, layer: bytes, config: dict[str, Any]) -> Path:
    """An OCI archive of one layer (a tar), for `ctr images import`. `config`: Entrypoint, Cmd, Env, User."""
    blob = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": f"sha256:{_digest(blob)}", "size": len(blob)},
            "layers": [{"mediaType": LAYER, "digest": f"sha256:{_digest(layer)}", "size": len(layer)}],
        }
    ).encode()
    described = {"mediaType": MANIFEST, "digest": f"sha256:{_digest(manifest)}", "size": len(manifest)}
    named = {**described, "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}
    index = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(archive, "index.json", index)
        for data in (blob, manifest, layer):
            _add(archive, f"blobs/sha256/{_digest(data)}", data)
    return target


def of_program(folder: Path, name: str, program: str) -> Path:
    """An image that is one static program."""
    data = io.BytesIO()
    base = Path(program).name
    with tarfile.open(fileobj=data, mode="w") as layer:
        entry = tarfile.TarInfo(base)
        body = Path(program).read_bytes()
        entry.size, entry.mode = len(body), 0o755
        layer.addfile(entry, io.BytesIO(body))
    return write_archive(
        folder / f"{base}.tar", name, data.getvalue(), {"Entrypoint": [f"/{base}"], "User": "65535:65535"}
    )


def _libraries(program: Path) -> set[Path]:
    """The shared libraries that a program loads, its interpreter among them."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", done.stdout)}


def of_files(target: Path, name: str, files: Mapping[str, Path], config: dict[str, Any]) -> Path:
    """An image of programs of this machine, each where it shall be, with the libraries that they need."""
    data = io.BytesIO()
    places: dict[str, Path] = {}
    for place, source in files.items():
        places[place] = source
        places |= {str(library).lstrip("/"): library for library in _libraries(source)}
    with tarfile.open(fileobj=data, mode="w", dereference=True) as layer:
        for folder, mode in (("tmp", 0o1777), ("data", 0o777), ("etc", 0o755)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            layer.addfile(entry)
        for place, source in sorted(places.items()):
            layer.add(source.resolve(), place, recursive=False)
    return write_archive(target, name, data.getvalue(), config)
