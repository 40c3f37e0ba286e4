"""One image for operator, node and router, put together in seconds from this machine's Python and the checkout.

The images that users get are built by charts/images/*/Dockerfile, which takes minutes; KVCOMMONS_TEST_IMAGES=dockerfile takes
those (`make soak` does). What runs in them is the same.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import kube_images

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ("operator", "node", "router")
OURS = (
    "operator/kvcommons_operator",
    "operator/kvcommons_cli",
    "cache_node/kvcommons_core",
    "cache_node/kvcommons_node",
    "connector/kvcommons_connector",
    "connector/kvcommons_router",
)
PYTHON, PACKAGES, PAYLOAD = "opt/python", "opt/packages", "opt/kvcommons/payload"
# Nothing of these is imported by what runs here.
LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
SCRIPT = "#!/opt/python/bin/python3\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
COMMANDS = {"kvcommons": "kvcommons_cli", "kvcommons-payload": "kvcommons_node.payload"}


def _standard_library() -> Iterator[tuple[str, Path]]:
    """Where each of its files goes in the image."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in library.rglob("*"):
        parts = path.relative_to(library).parts
        if path.is_file() and not (set(parts) & LEFT_OUT) and not parts[0].startswith("config-"):
            yield f"{PYTHON}/lib/{library.name}/{'/'.join(parts)}", path


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _packages() -> Iterator[tuple[str, Path]]:
    """Third-party packages of the locks that the real images install."""
    texts = [(ROOT / ".ci" / "requirements" / f"{name}.txt").read_text() for name in REQUIREMENTS]
    names = {name for text in texts for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}
    installed = {_normal(str(found.metadata["Name"])): found for found in importlib.metadata.distributions()}
    # Some are for other Pythons alone.
    for package in (installed[name] for name in sorted(map(_normal, names)) if name in installed):
        for file in package.files or ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and path.is_file():
                yield f"{PACKAGES}/{file}", path


def _ours() -> Iterator[tuple[str, Path]]:
    """Our rooms as they are in the checkout, what tells their commands, and the payload."""
    for room in OURS:
        folder = ROOT / room
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{PACKAGES}/{folder.name}/{path.relative_to(folder)}", path
    for file in importlib.metadata.files("kvcommons") or ():
        if file.parent.name.endswith(".dist-info") and file.name in ("METADATA", "entry_points.txt"):
            yield f"{PACKAGES}/{file}", Path(str(file.locate()))
    payload = ROOT / "build" / "payload"
    for path in payload.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{PAYLOAD}/{path.relative_to(payload)}", path


def _make_payload() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "payload.py")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"no payload: {done.stdout}{done.stderr}"


def _add_text(layer: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text), 0o755
    layer.addfile(entry, io.BytesIO(text.encode()))


def layer() -> bytes:
    """Everything, as the one layer of the image."""
    _make_payload()
    python = Path(os.path.realpath(sys.executable))
    files = dict([*_standard_library(), *_packages(), *_ours()])
    files[f"{PYTHON}/bin/python3"] = python
    if CERTIFICATES.exists():
        files[str(CERTIFICATES).lstrip("/")] = CERTIFICATES
    files |= kube_images.shell()
    native = [path for name, path in files.items() if ".so" in path.name or name.startswith("bin/") or path == python]
    files |= kube_images.libraries(native)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", dereference=True) as archive:
        kube_images.add_folders(archive)
        for name, path in sorted(files.items()):
            archive.add(path, name, recursive=False, filter=_readable)
        for command, module in COMMANDS.items():
            _add_text(archive, f"{PYTHON}/bin/{command}", SCRIPT.format(module=module))
    return data.getvalue()


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Pods run as another user than the one that owns the checkout."""
    entry.uid = entry.gid = 0
    entry.mode |= 0o444 | (0o111 if entry.mode & 0o100 else 0)
    return entry


def archive(target: Path, names: dict[str, str]) -> Path:
    """Images by reference, each with the command that it runs; all are of the same layer."""
    environment = [
        "PATH=/opt/python/bin:/bin",
        f"PYTHONPATH=/{PACKAGES}",
        "PYTHONUNBUFFERED=1",
        "PYTHONDONTWRITEBYTECODE=1",
    ]
    config = {"Env": environment, "Entrypoint": ["kvcommons"], "User": "65532:65532"}
    images = {reference: {**config, "Cmd": [command]} for reference, command in names.items()}
    return kube_images.write_archive(target, layer(), images)
