"""Everything that is checked without running the product; goes on after a failure, and names all of them at the end."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sysconfig.get_path("scripts"))


def native_sources() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for pattern in ("*.h", "*.cpp", "*.cu", "*.cuh")
        for path in (ROOT / "csrc").rglob(pattern)
    )


def checks() -> dict[str, list[str]]:
    return {
        "ruff check": [str(BIN / "ruff"), "check", "."],
        "ruff format": [str(BIN / "ruff"), "format", "--check", "."],
        "mypy": [str(BIN / "mypy")],
        "imports": [str(BIN / "lint-imports"), "--no-logo"],
        "CRDs": [sys.executable, "-m", "kvcommons_operator.crd", "--check"],
        "observed": [sys.executable, ".ci/observe.py", "check"],
        "chart": [sys.executable, ".ci/chart.py", "check"],
        "clang-format": [str(BIN / "clang-format"), "--dry-run", "-Werror", *native_sources()],
        "C++ warnings": [sys.executable, ".ci/native.py", "check"],
        "GPU kernels": [sys.executable, ".ci/gpu.py", "check"],
    }


def main() -> None:
    wanted = sys.argv[1:]
    unknown = [part for part in wanted if not any(part in name for name in checks())]
    if unknown:
        sys.exit(f"no check is called {', '.join(unknown)}; there are: {', '.join(checks())}")
    failed = []
    for name, command in checks().items():
        if wanted and not any(part in name for part in wanted):
            continue
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        verdict = "passed" if done.returncode == 0 else "FAILED"
        if done.returncode != 0:
            failed.append(name)
            print(done.stdout)
        print(f"{name}: {verdict} in {time.monotonic() - started:.1f} s", flush=True)
    if failed:
        sys.exit(f"check failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
