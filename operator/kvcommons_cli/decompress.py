"""Bring what a node's tier holds back into the engine's own bytes, as a job of the node."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import control, recoding


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("decompress", __doc__)
    recoding.add_arguments(parser)
    return recoding.run(parser.parse_args(argv), "decompress", {})
