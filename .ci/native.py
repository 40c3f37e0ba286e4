"""Build the native module in place and run the native tests; safe when several call it at once.

Configures once, then builds only what changed, and puts the module into the package by one rename, so that a process
which has the old one mapped keeps it.
"""

from __future__ import annotations

import argparse
import fcntl
import filecmp
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = {"address": "address,undefined", "thread": "thread"}


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold build/NAME.lock; a second caller waits, then finds the work done."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tool_environment() -> dict[str, str]:
    """This environment with the virtual environment's cmake and ninja first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run a command as the user's own: what it prints is shown."""
    done = subprocess.run([str(part) for part in command], env=environment or tool_environment(), check=False)
    if done.returncode != 0:
        sys.exit(f"failed with {done.returncode}: {' '.join(map(str, command))}")


def run_quietly(*command: str | Path) -> None:
    """Run a build step; what it prints is shown only where it failed or warned."""
    done = subprocess.run(
        [str(part) for part in command],
        env=tool_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0 or "warning:" in done.stdout:
        sys.stdout.write(done.stdout)
    if done.returncode != 0:
        sys.exit(f"failed with {done.returncode}: {' '.join(map(str, command))}")


def configure(folder: Path, *options: str) -> None:
    """Configure unless this very configuration is there already (cmake itself watches its own files afterwards)."""
    cmake = shutil.which("cmake", path=tool_environment()["PATH"])
    wanted = "\n".join((str(cmake), *options))
    stamp = folder / "kvcommons-options"
    if stamp.exists() and stamp.read_text() == wanted and (folder / "build.ninja").exists():
        return
    run_quietly("cmake", "--fresh", "-S", ROOT / "csrc", "-B", folder, "-G", "Ninja", *options)
    stamp.write_text(wanted)


def build_module(werror: bool) -> Path:
    """The module as it is used; or, to see every warning as an error and nothing else, without optimising."""
    folder = ROOT / "build" / f"{'check' if werror else 'native'}-{sysconfig.get_config_var('SOABI')}"
    flags = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0", "-DKVCOMMONS_WERROR=ON"]
    if not any(folder.glob("_native*.so")):
        print("building the native module: a minute or two on two idle cores, once", flush=True)
    configure(folder, f"-DPython_EXECUTABLE={sys.executable}", *(flags if werror else ["-DCMAKE_BUILD_TYPE=Release"]))
    run_quietly("cmake", "--build", folder, "--", "--quiet")
    return next(folder.glob("_native*.so"))


def build_programs() -> None:
    """What benchmarks run beside the module, into build/bench."""
    folder = ROOT / "build" / "bench"
    configure(folder, "-DCMAKE_BUILD_TYPE=Release", "-DKVCOMMONS_BENCH=ON", "-DKVCOMMONS_WERROR=ON")
    run_quietly("cmake", "--build", folder, "--", "--quiet")


def install_module(built: Path) -> None:
    """Beside the package's sources, under a name that carries the interpreter's ABI."""
    target = ROOT / "cache_node" / "kvcommons_core" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists() and filecmp.cmp(built, target, shallow=False):
        return
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(built, fresh)
    fresh.rename(target)


def run_tests(sanitizer: str, only: str) -> None:
    folder = ROOT / "build" / f"test-{sanitizer}"
    configure(
        folder,
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
        "-DKVCOMMONS_TESTS=ON",
        "-DKVCOMMONS_WERROR=ON",
        f"-DKVCOMMONS_SANITIZE={SANITIZERS[sanitizer]}",
    )
    wanted = [path.stem for path in (ROOT / "csrc" / "tests").glob("*_test.cpp") if only and re.search(only, path.stem)]
    run_quietly("cmake", "--build", folder, *(["--target", *wanted] if wanted else []), "--", "--quiet")
    options = {
        "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:check_initialization_order=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
    }
    command = ["ctest", "--test-dir", str(folder), "--output-on-failure", "--no-tests=error", "-j2"]
    run(*command, *(["-R", only] if only else []), environment={**tool_environment(), **options})


def clang() -> str | None:
    """The C++ compiler that brings libFuzzer, if one is here."""
    names = ("clang++", *(f"clang++-{version}" for version in range(21, 13, -1)))
    return next((found for name in names if (found := shutil.which(name))), None)


def run_fuzzers(only: str, seconds: int) -> None:
    """Each target over the kept corpus and what it finds from there on, for so long."""
    compiler = clang()
    if compiler is None:
        sys.exit("no clang++ is here: apt-get install clang (the tests run the same over seeded mutations)")
    folder = ROOT / "build" / "fuzz"
    configure(
        folder,
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
        "-DKVCOMMONS_FUZZ=ON",
        "-DKVCOMMONS_SANITIZE=address,undefined,fuzzer-no-link",
    )
    run_quietly("cmake", "--build", folder, "--", "--quiet")
    targets = sorted(path.stem for path in (ROOT / "csrc" / "tests").glob("fuzz_*.cpp"))
    for name in (name for name in targets if re.search(only, name)):
        found, kept = folder / f"corpus-{name}", ROOT / "csrc" / "tests" / "corpus"
        found.mkdir(exist_ok=True)
        # As large as two frames or blocks: what is larger is refused at once.
        run(folder / name, f"-max_total_time={seconds}", "-max_len=8192", f"-artifact_prefix={folder}/", found, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["module", "check", "test", "bench", "fuzz"])
    parser.add_argument("--sanitizer", choices=sorted(SANITIZERS), default="address")
    parser.add_argument("--only", default="", help="a regular expression of the names of tests or fuzzers")
    parser.add_argument("--seconds", type=int, default=60, help="of fuzzing, each target")
    chosen = parser.parse_args()
    with locked("module" if chosen.what == "module" else f"{chosen.what}-{chosen.sanitizer}"):
        if chosen.what == "test":
            run_tests(chosen.sanitizer, chosen.only)
        elif chosen.what == "check":
            build_module(werror=True)
        elif chosen.what == "bench":
            build_programs()
        elif chosen.what == "fuzz":
            run_fuzzers(chosen.only, chosen.seconds)
        else:
            install_module(build_module(werror=False))


if __name__ == "__main__":
    main()
