"""Images for a test cluster, put together here from files: no registry, no Docker."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SHELL = ("sh", "sed", "timeout", "head", "cat", "sleep", "mkdir", "env")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def write_archive(target: Path, layer: bytes, images: Mapping[str, dict[str, Any]]) -> Path:
    """An OCI archive for `ctr images import`: images by name, with their configs (Entrypoint, Cmd, Env, User), of one layer (a tar)."""
    blobs = [layer]
    described = []
    for name, config in images.items():
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
        names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
        entry = {"mediaType": MANIFEST, "digest": f"sha256:{_digest(manifest)}", "size": len(manifest)}
        described.append({**entry, "annotations": names})
        blobs += [blob, manifest]
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": described}).encode())
        for data in blobs:
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
    config = {"Entrypoint": [f"/{base}"], "User": "65535:65535"}
    return write_archive(folder / f"{base}.tar", data.getvalue(), {name: config})


def libraries(programs: Iterable[Path]) -> dict[str, Path]:
    """The shared libraries that programs and modules load, their interpreter among them, each at its own place."""
    asked = [str(path) for path in programs]
    done = subprocess.run(["ldd", *asked], capture_output=True, text=True, check=False)
    return {found.lstrip("/"): Path(found) for found in re.findall(r"(/\S+) \(0x", done.stdout)}


def shell() -> dict[str, Path]:
    """A shell and what scripts call."""
    programs = {name: shutil.which(name) for name in SHELL}
    return {f"bin/{name}": Path(path) for name, path in programs.items() if path}


def add_folders(layer: tarfile.TarFile) -> None:
    """What every image has."""
    for folder, mode in (("tmp", 0o1777), ("data", 0o777), ("etc", 0o755), ("run", 0o755), ("var/lib", 0o755)):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        layer.addfile(entry)


def of_files(target: Path, name: str, files: Mapping[str, Path], config: dict[str, Any]) -> Path:
    """An image of programs of this machine, each where it shall be, with the libraries that they need."""
    data = io.BytesIO()
    places = {**libraries(files.values()), **files}
    with tarfile.open(fileobj=data, mode="w", dereference=True) as layer:
        add_folders(layer)
        for place, source in sorted(places.items()):
            layer.add(source.resolve(), place, recursive=False)
    return write_archive(target, data.getvalue(), {name: config})
