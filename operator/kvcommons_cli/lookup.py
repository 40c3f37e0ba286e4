"""Ask a node which leading chunks of a text's tokens, or of a chain of keys, it holds."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import chain, control


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("lookup", __doc__)
    chain.add_arguments(parser)
    options = parser.parse_args(argv)
    return control.told(
        "lookup", lambda: control.show(control.ask(options, "POST", "/v1/lookup", chain.body_of(options)))
    )
