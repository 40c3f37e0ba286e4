"""What a test cluster runs of ours: the images of operator, node and router as users build them, and an engine's image.

The engine's image holds no file of an engine: its pods mount this machine's /usr, the Python that runs these tests, and the
model, through PersistentVolumes, which a namespace that enforces `restricted` admits.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kube_assembled
import kube_images
from kvcommons_core import redis_server

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "operator",
    "cache_node",
    "connector",
    "csrc",
    "charts/images",
    ".ci/requirements",
    "pyproject.toml",
    ".ci/images.py",
)
SCRIPTS = (".ci/elf.py", ".ci/native.py", ".ci/payload.py")
NAMES = ("operator", "node", "router")
TAG = "test"
VARIABLE = "KVCOMMONS_TEST_IMAGES"
BUILD_SECONDS_MAX = 3_000
ENGINE_IMAGE = "kvcommons.test/engine:1"
ENGINE_CACHE = "/engine-cache"
REDIS_IMAGE = "kvcommons.test/redis:1"
LINKS = ("bin", "sbin", "lib", "lib64")  # of a merged /usr


def _files() -> Iterator[Path]:
    for name in (*SOURCES, *SCRIPTS):
        place = ROOT / name
        if place.is_file():
            yield place
        yield from (path for path in sorted(place.rglob("*")) if path.is_file() and _is_source(path))


def _is_source(path: Path) -> bool:
    return "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc")


def digest() -> str:
    """Of all that goes into the images."""
    total = hashlib.sha256()
    for path in _files():
        total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def _store() -> Path:
    return Path(os.environ.get("KVCOMMONS_CACHE", ROOT / ".cache")) / "cluster-images"


def images(folder: Path) -> list[Path]:
    """Archives of our images: assembled in the folder, or built by their Dockerfiles where that is asked for."""
    if os.environ.get(VARIABLE) == "dockerfile":
        return built()
    names = {f"localhost/kvcommons-{name}:{TAG}": name for name in NAMES}
    return [kube_assembled.archive(folder / "kvcommons.tar", names)]


def built() -> list[Path]:
    """Built by the Dockerfiles, where a source has changed; older ones go."""
    target = _store() / digest()
    archives = [target / f"kvcommons-{name}.tar" for name in NAMES]
    if not all(path.exists() for path in archives):
        shutil.rmtree(_store(), ignore_errors=True)
        command = [sys.executable, str(ROOT / ".ci" / "images.py"), "--stand-ins", "--tag", TAG, "--save", str(target)]
        done = subprocess.run(command, cwd=ROOT, check=False, timeout=BUILD_SECONDS_MAX)
        assert done.returncode == 0, "the images could not be built; why is above"
    return archives


def engine_archive(target: Path) -> Path:
    """An image of nothing but the places that an engine's pod mounts on."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as layer:
        for name in (
            "usr",
            "etc",
            "tmp",
            "proc",
            "dev",
            "sys",
            "run",
            "var/tmp",
            "kvcommons",
            "models",
            "engine-cache",
        ):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
            layer.addfile(folder)
        for name in LINKS:
            if Path("/", name).is_symlink():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                layer.addfile(link)
        for name in ("etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/ld.so.cache"):
            if Path("/", name).exists():
                layer.add(f"/{name}", name)
    venv = Path(sys.prefix)
    path = f"PATH={venv}/bin:/usr/local/bin:/usr/bin:/bin"
    return kube_images.write_archive(target, data.getvalue(), {ENGINE_IMAGE: {"Env": [path], "Cmd": ["python3"]}})


def redis_archive(target: Path) -> Path:
    """An image of this machine's Redis, its client and a shell."""
    pairs = [(binary.path, binary.path.with_name("redis-cli")) for binary in redis_server.find_server()]
    server, client = next(pair for pair in pairs if pair[1].exists())
    files = {**kube_images.shell(), "bin/redis-server": server, "bin/redis-cli": client}
    config = {"Env": ["PATH=/bin"], "Cmd": ["redis-server"], "WorkingDir": "/data"}
    return kube_images.of_files(target, REDIS_IMAGE, files, config)


def model_folder() -> Path:
    """SmolLM2, made once; readable for a container's user."""
    command = [sys.executable, "-m", "kvcommons_cli", "model", "smollm2-float"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"no model: {done.stderr}"
    folder = Path(done.stdout.splitlines()[-1])
    for file in folder.iterdir():
        file.chmod(file.stat().st_mode | 0o444)
    return folder


@dataclass(frozen=True)
class HostFolder:
    """A folder of this machine that pods see at the same place or another."""

    name: str
    source: Path
    target: str
    writable: bool = False

    def manifests(self, namespace: str) -> list[dict[str, Any]]:
        """Its volume and the claim on it."""
        labels = {"kvcommons.test/volume": f"{namespace}-{self.name}"}
        size = {"storage": "1Gi"}
        modes = ["ReadWriteMany" if self.writable else "ReadOnlyMany"]
        return [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"{namespace}-{self.name}", "labels": labels},
                "spec": {
                    "capacity": size,
                    "accessModes": modes,
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "",
                    "hostPath": {"path": str(self.source), "type": "Directory"},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": self.name, "namespace": namespace},
                "spec": {
                    "accessModes": modes,
                    "storageClassName": "",
                    "resources": {"requests": size},
                    "selector": {"matchLabels": labels},
                },
            },
        ]

    @property
    def volume(self) -> dict[str, Any]:
        return {"name": self.name, "persistentVolumeClaim": {"claimName": self.name, "readOnly": not self.writable}}

    @property
    def mount(self) -> dict[str, Any]:
        return {"name": self.name, "mountPath": self.target, "readOnly": not self.writable}


def host_folders() -> list[HostFolder]:
    """What an engine of this machine is made of: the system's libraries, the Python, its packages, what it found out before."""
    venv = Path(sys.prefix)
    places = {"usr": Path("/usr"), "venv": venv, "python": Path(sysconfig.get_config_var("prefix") or sys.base_prefix)}
    if places["python"].is_relative_to("/usr"):
        del places["python"]
    cache = _store().with_name("cluster-engines")
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o1777)
    folders = [HostFolder(name, place, str(place)) for name, place in places.items()]
    return [*folders, HostFolder("engine-cache", cache, ENGINE_CACHE, writable=True)]


HIDDEN = "nothing"  # of a ConfigMap and its key


def hidden() -> list[str]:
    """Files by which this checkout's packages would be found in the engine's Python, before those that the payload brings."""
    packages = Path(sysconfig.get_path("purelib"))
    return [str(path) for path in packages.glob("*.pth") if "kvcommons" in path.name]


def hiding_manifest(namespace: str) -> dict[str, Any]:
    metadata = {"name": HIDDEN, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {HIDDEN: ""}}


def engine_volumes() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(volumes, mounts) of an engine's pod."""
    folders = host_folders()
    volumes = [*(folder.volume for folder in folders), {"name": HIDDEN, "configMap": {"name": HIDDEN}}]
    over = [{"name": HIDDEN, "mountPath": path, "subPath": HIDDEN, "readOnly": True} for path in hidden()]
    return volumes, [*(folder.mount for folder in folders), *over]
