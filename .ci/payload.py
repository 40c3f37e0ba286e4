"""Build what is added to a stock engine image: the connector without third-party packages, for several Pythons.

    payload.py                      build/payload: for Python 3.11, and by the stable ABI for 3.12 and newer
    payload.py --machine aarch64    the same for another processor, by a cross-compiler (Debian: g++-aarch64-linux-gnu)
    payload.py native DIR           only the native module of the Python that runs this (a stage of an image's build)
    payload.py --with DIR           the payload, with native modules that are built already

A Python is taken from --python, PATH, pyenv's or uv's; its C headers are all that is wanted of it.
"""

from __future__ import annotations

import argparse
import ast
import glob
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent))
import elf
import native

ROOT = Path(__file__).resolve().parent.parent
GLIBC_MAX: Final = "2.34"  # Ubuntu 22.04, RHEL 9, Debian 12, and everything newer
LIBRARIES: Final = frozenset(
    {"libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libm.so.6", "libgcc_s.so.1"}
)
# What the connector imports of the core (tests hold the list to that): nothing of it needs a third-party package.
CORE_MODULES: Final = ("__init__", "errors", "fingerprint", "keys", "limits", "weights")
STABLE_MIN: Final = (3, 12)
PROBE: Final = (
    "import os, sys, sysconfig, json; paths = sysconfig.get_paths();"
    "print(json.dumps([*sys.version_info[:2], sys.executable, paths['include'],"
    " os.path.exists(os.path.join(paths['include'], 'Python.h')), bool(sysconfig.get_config_var('Py_GIL_DISABLED'))]))"
)


@dataclass(frozen=True)
class Python:
    """An interpreter whose C headers are here."""

    version: tuple[int, int]
    path: str
    include: str

    @property
    def stable(self) -> bool:
        return self.version >= STABLE_MIN


def probe(path: str) -> Python | None:
    try:
        done = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, timeout=20, check=False)
        major, minor, executable, include, headers, free_threaded = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Python((major, minor), executable, include) if headers and not free_threaded else None


def candidates() -> Iterator[str]:
    yield from (sys.executable, sys.base_prefix + "/bin/python3", "python3", "python3.11", "python3.12", "python3.13")
    home = Path.home()
    yield from sorted(glob.glob(str(home / ".pyenv/versions/3.1[1-9]*/bin/python3")))
    yield from sorted(glob.glob(str(home / ".local/share/uv/python/cpython-3.1[1-9]*/bin/python3")))


def pythons(given: list[str]) -> list[Python]:
    """One for 3.11 and one for the stable ABI, as far as they are here."""
    found: dict[bool, Python] = {}
    for path in given or candidates():
        python = probe(path)
        if python is not None and (python.version == (3, 11) or python.stable):
            if python.stable in found and python.version >= found[python.stable].version:
                continue
            found[python.stable] = python  # the oldest: the stable ABI is that of 3.12
        elif given:
            sys.exit(f"{path}: no CPython 3.11, or 3.12 and newer, with its C headers (Debian: python3-dev)")
    return [found[stable] for stable in sorted(found)]


def cross_options(python: Python, machine: str) -> list[str]:
    if machine == platform.machine():
        return []
    compiler = f"{machine}-linux-gnu-g++"
    if shutil.which(compiler) is None:
        sys.exit(f"no {compiler}: apt-get install g++-{machine}-linux-gnu")
    soabi = f"cpython-{python.version[0]}{python.version[1]}-{machine}-linux-gnu"
    return [
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={machine}",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DPython_INCLUDE_DIR={python.include}",
        f"-DSKBUILD_SOABI={soabi}",
        "-DSKBUILD_SOSABI=abi3",
        "-DCMAKE_FIND_ROOT_PATH_MODE_PROGRAM=NEVER",
    ]


def build_native(python: Python, machine: str) -> Path:
    """The module for one Python, without anything of C++'s runtime asked of the image it comes into."""
    kind = "abi3" if python.stable else f"cp{python.version[0]}{python.version[1]}"
    folder = ROOT / "build" / f"payload-{kind}-{machine}"
    nanobind = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not nanobind:
        sys.exit(f"{sys.executable} has no nanobind: make build")
    native.configure(
        folder,
        f"-DPython_EXECUTABLE={python.path}",
        f"-Dnanobind_DIR={nanobind}",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DKVCOMMONS_PORTABLE=ON",
        *cross_options(python, machine),
    )
    native.run_quietly("cmake", "--build", folder, "--", "--quiet")
    built = next(folder.glob("_native*.so"))
    complain_of(built, machine)
    return built


def complain_of(built: Path, machine: str) -> None:
    """End where a module asks for more than every supported image has."""
    needs = elf.needs_of(built)
    if needs.machine != machine:
        sys.exit(f"{built} is for {needs.machine}, not {machine}")
    foreign = set(needs.libraries) - LIBRARIES
    if foreign:
        sys.exit(f"{built} needs {', '.join(sorted(foreign))}, which an image may not have")
    if elf.version_key(needs.glibc) > elf.version_key(GLIBC_MAX):
        sys.exit(f"{built} needs glibc {needs.glibc}; {GLIBC_MAX} at most: build on an older distribution")


def engine_modules() -> dict[str, list[str]]:
    """Modules of the engines that the connector imports at start: what a release must have to be supported."""
    found: set[str] = set()
    for path in sorted((ROOT / "connector" / "kvcommons_connector").glob("vllm*.py")):
        found |= {
            node.module
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vllm.")
        }
    return {"vllm": sorted(found)}


def sources() -> Iterator[tuple[Path, str]]:
    """(file, its path in the payload) of what is Python, and of the GPU's kernels where they were built."""
    for name in CORE_MODULES:
        yield ROOT / "cache_node" / "kvcommons_core" / f"{name}.py", f"python/kvcommons_core/{name}.py"
    for path in sorted((ROOT / "connector" / "kvcommons_connector").glob("*.py")):
        if path.name != "launch.py":
            yield path, f"python/kvcommons_connector/{path.name}"
    yield ROOT / "connector" / "kvcommons_connector" / "launch.py", "launch.py"
    kernels = ROOT / "cache_node" / "kvcommons_core" / "_cuda.fatbin"
    if kernels.exists():  # `make gpu` was asked for; the same image for every processor
        yield kernels, f"python/kvcommons_core/{kernels.name}"


def assemble(built: list[Path], machine: str, target: Path) -> None:
    """Lay the payload out beside its place, then put it there."""
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    files = [*sources(), *((path, f"python/kvcommons_core/{path.name}") for path in built)]
    digests = {}
    for source, name in files:
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, fresh / name)
        (fresh / name).chmod(0o444)
        digests[name] = hashlib.sha256(source.read_bytes()).hexdigest()
    stable = [path for path in built if ".abi3." in path.name]
    manifest = {
        "version": tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
        "machine": machine,
        "glibc": max((elf.needs_of(path).glibc for path in built), key=elf.version_key),
        "pythons": (["3.11"] if len(stable) < len(built) else []) + ([">=3.12"] if stable else []),
        "engineModules": engine_modules(),
        "files": digests,
    }
    (fresh / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    print(f"{target}: {machine}, glibc {manifest['glibc']}, Python {' and '.join(manifest['pythons'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("native", nargs="*", help="`native DIR`: only this Python's module, into DIR")
    parser.add_argument("--machine", default=platform.machine(), choices=["x86_64", "aarch64"])
    parser.add_argument("--python", action="append", default=[], help="an interpreter to build for (may be repeated)")
    parser.add_argument("--with", action="append", default=[], dest="given", type=Path, help="a folder of modules")
    parser.add_argument("--dest", type=Path, help="default: build/payload (build/payload-MACHINE for another one)")
    parser.add_argument("--all", action="store_true", help="fail where a Python for one of the two builds is missing")
    chosen = parser.parse_args()
    if chosen.native and (chosen.native[0] != "native" or len(chosen.native) != 2):
        parser.error("`native DIR`, or nothing")
    with native.locked(f"payload-{chosen.machine}"):
        if chosen.native:
            own = probe(sys.executable) or sys.exit(f"{sys.executable} has no C headers")
            Path(chosen.native[1]).mkdir(parents=True, exist_ok=True)
            shutil.copy2(build_native(own, chosen.machine), chosen.native[1])
            return
        made = [path for folder in chosen.given for path in sorted(folder.glob("_native*.so"))]
        for path in made:
            complain_of(path, chosen.machine)
        have = {".abi3." in path.name for path in made}
        wanted = [python for python in pythons(chosen.python) if python.stable not in have]
        kinds = have | {python.stable for python in wanted}
        if len(kinds) < 2:
            lacking = "3.11" if True in kinds else "3.12 or newer"
            said = f"no Python {lacking} with its C headers here (`uv python install 3.12`, or --python PATH)"
            if chosen.all or not kinds:
                sys.exit(said)
            print(f"note: {said}; the payload is without it", flush=True)
        built = [*made, *(build_native(python, chosen.machine) for python in wanted)]
        suffix = "" if chosen.machine == platform.machine() else f"-{chosen.machine}"
        assemble(built, chosen.machine, (chosen.dest or ROOT / "build" / f"payload{suffix}").absolute())


if __name__ == "__main__":
    main()
