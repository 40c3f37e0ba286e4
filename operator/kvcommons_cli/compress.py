"""Bring what a node's tier holds into a smaller form, as a job of the node."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import control, recoding


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("compress", __doc__)
    parser.add_argument(
        "--codec", default="lossless", help="lossless (default), or the tier's own where the node allows loss"
    )
    recoding.add_arguments(parser)
    options = parser.parse_args(argv)
    return recoding.run(options, "compress", {"codec": options.codec})
