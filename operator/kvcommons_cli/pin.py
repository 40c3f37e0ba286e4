"""Keep the leading chunks of a text from eviction for a while."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import chain, control, pins

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("pin", __doc__)
    chain.add_arguments(parser)
    parser.add_argument("--name", help="what to call it; a pin of this name is replaced (default: made of the chunks)")
    parser.add_argument(
        "--ttl", type=seconds, metavar="TIME", help="how long, as 90s, 30m, 12h or 7d; 30d at most (default 1h)"
    )
    control.add_output(parser)
    options = parser.parse_args(argv)

    def act() -> int:
        body = chain.body_of(options)
        if options.name is not None:
            body["name"] = options.name
        if options.ttl is not None:
            body["ttl_seconds"] = options.ttl
        answer = control.ask(options, "POST", "/v1/pin", body)
        return control.show(answer) if options.output == "json" else pins.show([answer["pin"]], answer)

    return control.told("pin", act)


def seconds(text: str) -> int:
    """A time as it is written on the command line. :raises ValueError: if it is none."""
    digits, unit = (text[:-1], text[-1:]) if text[-1:] in SECONDS else (text, "s")
    return int(digits) * SECONDS[unit]
