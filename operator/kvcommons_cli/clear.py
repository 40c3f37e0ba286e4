"""Make a node forget the chunks of one fingerprint, or all."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import control


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("clear", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--fingerprint",
        help="forget the chunks of this fingerprint: as `kvcommons stats` lists it, or its first digits",
    )
    what.add_argument("--all", action="store_true", help="forget every chunk")
    options = parser.parse_args(argv)
    body = {"all": True} if options.all else {"fingerprint": options.fingerprint}
    return control.told("clear", lambda: control.show(control.ask(options, "POST", "/v1/clear", body)))
