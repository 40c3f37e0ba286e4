"""Show a node's counters and state."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import control, spread


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("stats", __doc__)
    spread.add_nodes(parser)
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="json", help="of all nodes a table, or JSON (the default)"
    )
    options = parser.parse_args(argv)
    call = spread.Call("stats", "GET", "/v1/stats", {})
    return control.told("stats", lambda: spread.run(options, call, control.show))
