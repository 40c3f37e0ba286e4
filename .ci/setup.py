"""Make the virtual environment what a role needs and install the project into it; does nothing where nothing changed.

    python3 .ci/setup.py [test|demo]

Checks the machine first (preflight.py), brings uv (uv.py), makes .venv from the role's lock, installs the project editable
and builds what changed of the native module. Safe when several call it at once. KVCOMMONS_DEVICE=gpu gives the demo the
engine's GPU build, in .venv-gpu: not by itself yet, because what copies GPU memory has run on no GPU so far.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import preflight
import steps
import uv

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / ".ci" / "requirements"
COVERS = {"demo": ("demo", "test"), "test": ("test",), "demo-gpu": ("demo-gpu",)}  # a role is there if one of these is
TORCH_CPU = "torch==2.13.0+cpu"
TORCH_GPU_ONLY = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==")
PROBE_SECONDS_MAX = 20
PROJECT_FILES = ("pyproject.toml",)  # a change of these installs the project again


@contextmanager
def one_at_a_time() -> Iterator[None]:
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def device() -> str:
    chosen = os.environ.get("KVCOMMONS_DEVICE", "")
    if chosen not in ("", "cpu", "gpu"):
        sys.exit(f"KVCOMMONS_DEVICE is {chosen!r}; it is cpu or gpu")
    return chosen or "cpu"


class Stamp:
    """What was put into a virtual environment, kept inside it: role -> digest of its lock, and the project's digest."""

    def __init__(self, venv: Path) -> None:
        self.path = venv / "kvcommons-setup.json"
        self.venv = venv

    def read(self) -> Dict[str, str]:
        if not self.path.exists() or not (self.venv / "bin" / "python").exists():
            return {}
        known: Dict[str, str] = json.loads(self.path.read_text())
        return known

    def write(self, **changes: Optional[str]) -> None:
        known = {**self.read(), **changes}
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text(json.dumps({key: value for key, value in known.items() if value}, indent=1))
        fresh.replace(self.path)

    def has_role(self, role: str) -> bool:
        known = self.read()
        return any(known.get(name) == digest(LOCKS / f"{name}.txt") for name in COVERS[role])

    def has_project(self) -> bool:
        return self.read().get("project") == project_digest()


def project_digest() -> str:
    return hashlib.sha256("".join(digest(ROOT / name) for name in PROJECT_FILES).encode()).hexdigest()


def run(command: List[str]) -> None:
    done = subprocess.run(command, cwd=str(ROOT), check=False)
    if done.returncode != 0:
        sys.exit("setup failed: " + " ".join(command))


def offers(uv_path: str, python: Path, options: List[str]) -> bool:
    """Whether an index has the engine's CPU build of torch; asked without retries, within a bound."""
    command = [
        uv_path,
        "pip",
        "install",
        "--dry-run",
        "--quiet",
        "--no-deps",
        "--python",
        str(python),
        *options,
        TORCH_CPU,
    ]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "UV_HTTP_RETRIES": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def torch_cpu_options(uv_path: str, python: Path) -> Optional[List[str]]:
    """Options that get torch's CPU build (4 GB smaller): from the configured index, else torch's own; None if none has it."""
    if os.environ.get("KVCOMMONS_TORCH") == "locked":
        return None
    for options in ([], ["--torch-backend", "cpu"]):
        if offers(uv_path, python, options):
            return options
    return None


def without_torch(lock: str) -> str:
    """A lock less torch and what only torch's GPU build needs."""
    packages = re.split(r"\n(?=[A-Za-z0-9])", lock)
    return "\n".join(package for package in packages if not TORCH_GPU_ONLY.match(package)) + "\n"


def install_packages(uv_path: str, venv: Path, role: str) -> None:
    python = venv / "bin" / "python"
    lock = (LOCKS / f"{role}.txt").read_text()
    # Compiled now, by all cores: else each engine compiles thousands of modules at its first start, or at every start where
    # the environment says that Python keeps no bytecode.
    install = [uv_path, "pip", "install", "--python", str(python), "--no-deps", "--compile-bytecode"]
    options = None if role == "demo-gpu" else torch_cpu_options(uv_path, python)
    if options is not None:
        lock = without_torch(lock)
        steps.run_step("torch, its CPU build", [*install, *options, TORCH_CPU])
    count = len(re.findall(r"^[A-Za-z0-9][^ ]*==", lock, re.MULTILINE))
    title = f"{count} packages of {role}" + (", torch as locked" if options is None else "")
    steps.run_step(title, [*install, "--require-hashes", "-r", "-"], lock)


def make_venv(uv_path: str, venv: Path, python: str) -> None:
    if (venv / "bin" / "python").exists() and preflight.probe_python(str(venv / "bin" / "python")) is not None:
        return
    steps.run_step(f"{venv.name} with {python}", [uv_path, "venv", "--clear", "--python", python, str(venv)])


def install_project(uv_path: str, venv: Path) -> None:
    """Metadata, the command and the paths of the rooms; the native module follows by native.py."""
    options = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    install = [uv_path, "pip", "install", "--python", str(venv / "bin" / "python"), *options]
    steps.run_step("the project", ["env", "KVCOMMONS_PURE=true", *install])


def venv_of(role: str) -> Tuple[str, Path]:
    """The role that this machine gets, and where."""
    if role == "demo" and device() == "gpu":
        return "demo-gpu", ROOT / ".venv-gpu"
    return role, ROOT / ".venv"


def setup(role: str) -> Path:
    """The virtual environment, with the role's packages and the project in it."""
    role, venv = venv_of(role)
    stamp = Stamp(venv)
    if stamp.has_role(role) and stamp.has_project():
        return venv
    started = time.monotonic()
    steps.begin_log()
    python = preflight.check("gpu" if role == "demo-gpu" else "cpu", installed=stamp.has_role(role))
    try:
        uv_path = uv.bring(python.path)
    except uv.NoUv as error:
        sys.exit(str(error))
    make_venv(uv_path, venv, python.path)
    if not stamp.has_role(role):
        install_packages(uv_path, venv, role)
        stamp.write(**{role: digest(LOCKS / f"{role}.txt")})
    if not stamp.has_project():
        stamp.write(project=None)
        install_project(uv_path, venv)
        stamp.write(project=project_digest())
    steps.say(f"done in {time.monotonic() - started:.0f} s")
    return venv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("role", nargs="?", choices=["test", "demo"], default="test")
    parser.add_argument("--print-python", action="store_true", help="only print the path of the role's interpreter")
    chosen = parser.parse_args()
    if chosen.print_python:
        print(venv_of(chosen.role)[1] / "bin" / "python")
        return
    with one_at_a_time():
        venv = setup(chosen.role)
    run([str(venv / "bin" / "python"), str(ROOT / ".ci" / "native.py"), "module"])


if __name__ == "__main__":
    main()
