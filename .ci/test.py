"""Run the tests: the native ones under sanitizers, then pytest's suites in order; each prints its time.

What follows the options goes to pytest: `make test ARGS="tests/unit -k keys"` runs no native tests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("tests/unit", "tests/integration", "tests/cluster", "tests/engine")
# After the long ones: what make test runs as well, at length, and in the images that users get. Files soak_* are collected by
# nobody who does not name them.
SOAKED = (
    "tests/soak",
    "tests/cluster/test_crd_random.py",
    "tests/cluster/test_operator_random.py",
    "tests/cluster/test_e2e.py",
    "tests/cluster/soak_e2e_lost.py",
    "tests/cluster/soak_install.py",
    "tests/cluster/soak_stuck.py",
)
RANDOM_TIMES = "10"
CLUSTER = "tests/cluster"
LOWEST = ("kube-apiserver-lowest",)  # the oldest Kubernetes that the chart admits


def timed(name: str, *command: str) -> bool:
    """Run a suite of its own; what it prints is shown."""
    print(f"=== {name} ===", flush=True)
    started = time.monotonic()
    passed = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    print(f"=== {name}: {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s ===", flush=True)
    return passed


def present(suites: tuple[str, ...]) -> list[str]:
    """The suites that are there; with KVCOMMONS_NO_SKIP a missing one is a failure (pytest refuses its name)."""
    if os.environ.get("KVCOMMONS_NO_SKIP"):
        return list(suites)
    return [suite for suite in suites if (ROOT / suite).is_file() or any((ROOT / suite).rglob("test_*.py"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--soak", action="store_true", help="the long tests instead, and ThreadSanitizer")
    chosen, arguments = parser.parse_known_args()
    named = [argument for argument in arguments if argument.partition("::")[0].startswith("tests")]
    passed = True
    if not named:
        sanitizer = "thread" if chosen.soak else "address"
        passed = timed(
            f"native, {sanitizer} sanitizer", sys.executable, ".ci/native.py", "test", "--sanitizer", sanitizer
        )
    suites = [] if named else present(SOAKED if chosen.soak else SUITES)
    if chosen.soak:
        os.environ.setdefault("KVCOMMONS_TEST_IMAGES", "dockerfile")
        os.environ.setdefault("KVCOMMONS_TIMES", RANDOM_TIMES)
    if any(suite.startswith(CLUSTER) for suite in suites):
        # Here, where the progress of a first build shows; the tests would do it as well.
        programs = ["cluster" if os.geteuid() == 0 else "apiserver", *(LOWEST if chosen.soak else ())]
        passed = timed("programs of a test cluster", sys.executable, ".ci/kube.py", *programs) and passed
    pytest = subprocess.run([sys.executable, "-m", "pytest", *suites, *arguments], cwd=ROOT, check=False)
    if not passed:
        print("FAILED: the native tests or a build (see above)", flush=True)
    sys.exit(0 if passed and pytest.returncode == 0 else 1)


if __name__ == "__main__":
    main()
