"""Build the images of operator, node and router by buildah or docker, whichever is here.

images.py                        kvcommons-{operator,node,router}:VERSION
images.py --only node --save D   one of them, and D/kvcommons-node.tar (docker-archive) to import where there is no registry
images.py --stand-ins            where no registry can be reached: base images made by debootstrap from Debian's packages
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "charts" / "images"
NAMES: Final = ("operator", "node", "router")
REGISTRY: Final = "localhost"
# Stand-ins for python:3.11-slim and python:3.12-slim: Debian's own Python, and one that is on this machine.
STAND_INS: Final = {
    "PYTHON_IMAGE": "kvcommons-standin-python:3.11",
    "PYTHON_STABLE_IMAGE": "kvcommons-standin-python:3.12",
}
PACKAGES: Final = "python3,python3-venv,python3-pip,python3-dev,ca-certificates"
STABLE_PACKAGES: Final = "g++,ca-certificates,libssl3,libffi8,libsqlite3-0,zlib1g,libbz2-1.0,liblzma5,libreadline8"
# A machine's own way to packages, given to the builds that run on it; nothing of it stays in an image.
MACHINE_FILES: Final = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=str(ROOT), check=False)
    if done.returncode != 0:
        sys.exit(f"images: failed with {done.returncode}: {' '.join(command)}")


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def builder() -> str:
    for name in ("buildah", "docker"):
        if shutil.which(name):
            return name
    sys.exit("images: neither buildah nor docker is here: apt-get install buildah")


def version() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"', text, re.MULTILINE)
    return found.group(1) if found else sys.exit("images: no version in pyproject.toml")


def newer_python() -> Path:
    """The prefix of a CPython 3.12 of this machine: a whole one, not a virtual environment."""
    found = sorted(glob.glob(str(Path.home() / ".pyenv/versions/3.12.*")))
    found += sorted(glob.glob(str(Path.home() / ".local/share/uv/python/cpython-3.12*")))
    if not found:
        sys.exit("images: no CPython 3.12 under ~/.pyenv or uv's folder for a stand-in: uv python install 3.12")
    return Path(found[0])


def make_stand_in(name: str, packages: str, python: Path | None) -> None:
    """A base image from Debian's packages under a local name, once."""
    if succeeds(["buildah", "inspect", "--type", "image", f"{REGISTRY}/{name}"]):
        return
    if shutil.which("debootstrap") is None:
        sys.exit("images: no debootstrap: apt-get install debootstrap")
    root = ROOT / "build" / "stand-ins" / name.replace(":", "-")
    shutil.rmtree(str(root), ignore_errors=True)
    root.mkdir(parents=True)
    run(["debootstrap", "--variant=minbase", "--include=" + packages, "bookworm", str(root)])
    if python is not None:
        for part in ("bin", "include", "lib"):
            shutil.copytree(str(python / part), str(root / "usr/local" / part), symlinks=True, dirs_exist_ok=True)
        run(["chroot", str(root), "ldconfig"])
    shutil.rmtree(str(root / "var/cache/apt/archives"), ignore_errors=True)
    container = subprocess.check_output(["buildah", "from", "scratch"], universal_newlines=True).strip()
    run(["buildah", "add", "-q", container, str(root), "/"])
    run(["buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container])
    run(["buildah", "commit", "-q", "--rm", container, f"{REGISTRY}/{name}"])
    shutil.rmtree(str(root))


def build(tool: str, name: str, image: str, stand_ins: bool) -> None:
    file = str(FOLDER / name / "Dockerfile")
    if tool == "docker":
        run(["docker", "build", "-f", file, "-t", image, "."])
        return
    command = ["buildah", "bud", "--layers", "-f", file, "-t", image, "--ignorefile", str(FOLDER / ".dockerignore")]
    if stand_ins:
        text = Path(file).read_text(encoding="utf-8")
        command += ["--pull-never", "--isolation", "chroot", "--network", "host"]
        for argument, base in STAND_INS.items():
            if f"ARG {argument}=" in text:
                command += ["--build-arg", f"{argument}={REGISTRY}/{base}"]
        for path in MACHINE_FILES:
            if os.path.exists(path):
                command += ["--volume", f"{path}:{path}:ro"]
    run([*command, "."])


def save(tool: str, image: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(target.name + ".new")
    if fresh.exists():
        fresh.unlink()
    run(
        ["docker", "save", "-o", str(fresh), image]
        if tool == "docker"
        else ["buildah", "push", "-q", image, f"docker-archive:{fresh}:{image}"]
    )
    fresh.replace(target)
    print(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES, help="this one (may be repeated)")
    parser.add_argument("--prefix", default="", help="of the names, such as registry.example.com/team/")
    parser.add_argument("--tag", default=version(), help="default: %(default)s")
    parser.add_argument(
        "--stand-ins", action="store_true", help="base images from Debian's packages (buildah, as root)"
    )
    parser.add_argument("--save", type=Path, help="a folder for docker-archives")
    chosen = parser.parse_args()
    tool = "buildah" if chosen.stand_ins else builder()
    prefix = chosen.prefix or ("" if tool == "docker" else REGISTRY + "/")
    names = chosen.only or list(NAMES)
    if chosen.stand_ins:
        make_stand_in(STAND_INS["PYTHON_IMAGE"], PACKAGES, None)
        if "node" in names:
            make_stand_in(STAND_INS["PYTHON_STABLE_IMAGE"], STABLE_PACKAGES, newer_python())
    for name in names:
        image = f"{prefix}kvcommons-{name}:{chosen.tag}"
        build(tool, name, image, chosen.stand_ins)
        if chosen.save:
            save(tool, image, chosen.save / (f"kvcommons-{name}.tar"))
        print(image)


if __name__ == "__main__":
    main()
