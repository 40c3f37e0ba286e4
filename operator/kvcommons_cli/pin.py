"""Keep the leading chunks of a text from eviction for a while."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import chain, control, pins, spread


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("pin", __doc__)
    chain.add_arguments(parser)
    parser.add_argument("--name", help="what to call it; a pin of this name is replaced (default: made of the chunks)")
    parser.add_argument(
        "--ttl", type=control.seconds, metavar="TIME", help="how long, as 90s, 30m, 12h or 7d; 30d at most (default 1h)"
    )
    spread.add_nodes(parser)
    control.add_output(parser)
    options = parser.parse_args(argv)

    def act() -> int:
        body = chain.body_of(options)
        if options.name is not None:
            body["name"] = options.name
        if options.ttl is not None:
            body["ttl_seconds"] = options.ttl
        call = spread.Call("pin", "POST", "/v1/pin", body)
        return spread.run(options, call, lambda answer: pins.show([answer["pin"]], answer))

    return control.told("pin", act)
