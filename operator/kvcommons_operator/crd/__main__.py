"""`python -m kvcommons_operator.crd` writes crds/, the chart's copy and docs/crds.md; with --check it only says what differs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kvcommons_operator.crd.generate import COMMAND, outdated, write

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: Sequence[str]) -> int:
    """0 when all is as the models say, 1 when it is not, 2 for what it does not understand."""
    if list(arguments) not in ([], ["--check"]):
        sys.stderr.write(f"{COMMAND} [--check]\n")
        return 2
    if not (ROOT / "pyproject.toml").is_file():
        sys.stderr.write(f"{ROOT} is no checkout of kvcommons: run this from one\n")
        return 2
    if not arguments:
        for path in write(ROOT):
            sys.stdout.write(f"wrote {path}\n")
        return 0
    differing = outdated(ROOT)
    for path in differing:
        sys.stderr.write(f"{path} is not what the models say; run {COMMAND}\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
