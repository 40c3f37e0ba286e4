"""Show a node's counters and state."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import control


def main(argv: Sequence[str] | None = None) -> int:
    options = control.parser("stats", __doc__).parse_args(argv)
    return control.told("stats", lambda: control.show(control.ask(options, "GET", "/v1/stats")))
