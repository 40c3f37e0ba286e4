"""End a pin of a node, or all of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kvcommons_cli import control


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("unpin", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", help="the pin, as `kvcommons pins` lists it")
    what.add_argument("--all", action="store_true", help="end every pin")
    control.add_output(parser)
    options = parser.parse_args(argv)

    def act() -> int:
        body = {"all": True} if options.all else {"name": options.name}
        answer = control.ask(options, "POST", "/v1/unpin", body)
        if options.output == "json":
            return control.show(answer)
        if not answer["pins"] and not options.all:
            sys.stderr.write(f"kvcommons unpin: there is no pin {options.name!r}; `kvcommons pins` lists them\n")
            return control.REFUSED_STATUS
        sys.stdout.write(f"{answer['pins']} ended; eviction may take {answer['chunks']} chunks\n")
        return 0

    return control.told("unpin", act)
