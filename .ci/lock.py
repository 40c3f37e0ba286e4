"""Write .ci/requirements/ROLE.txt: every package a role installs, by version and hash, and no index's address.

`make lock` keeps what is locked and adds what is missing; `make lock ARGS=--upgrade` takes the newest of everything.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".ci" / "requirements"
ROLES = {
    "test": ["--extra", "demo", "--extra", "operator", "--extra", "s3", "--extra", "otel", "--group", "test"],
    "demo": ["--extra", "demo", "--group", "build"],
    "demo-gpu": ["--extra", "node", "--extra", "router", "--extra", "vllm", "--group", "gpu", "--group", "build"],
    "operator": ["--extra", "operator"],
    "node": ["--extra", "node"],
    "node-s3": ["--extra", "node", "--extra", "s3"],
    "router": ["--extra", "router", "--extra", "otel"],
    "build": ["--group", "build"],
    "gpu-build": ["--group", "gpu-build"],
}
ALONE = {"demo-gpu", "gpu-build"}  # the engine's GPU build pins other versions of what both need
HEADER = "# Made by `make lock` from pyproject.toml: Linux on x86_64, Python 3.11 to 3.13. Do not edit.\n"


def pins(path: Path) -> list[str]:
    """`name==version ; marker` of each package of a lock."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line.removesuffix("\\").strip() for line in lines if re.match(r"[A-Za-z0-9]", line)]


def lock(role: str, constraints: list[str], upgrade: bool) -> None:
    """Compile one role. The roles share versions: later ones are held to what the first ones chose."""
    target = FOLDER / f"{role}.txt"
    command = ["uv", "pip", "compile", "pyproject.toml", *ROLES[role], "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", "--quiet"]
    command += ["--constraints", "-", "--output-file", str(target), *(["--upgrade"] if upgrade else [])]
    done = subprocess.run(command, cwd=ROOT, input="\n".join(constraints), text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{role}: no lock")
    body = re.sub(r"^#.*\n", "", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
    target.write_text(HEADER + body, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--constraints", type=Path, help="also hold to this file's versions")
    chosen = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    given = chosen.constraints.read_text().splitlines() if chosen.constraints else []
    for role in ROLES:
        lock(
            role, [] if role in ALONE else given + (pins(FOLDER / "test.txt") if role != "test" else []), chosen.upgrade
        )
        print(f"{role}: {len(pins(FOLDER / f'{role}.txt'))} packages")


if __name__ == "__main__":
    main()
