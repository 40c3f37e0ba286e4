"""Say what a node's last requests reused, and why not more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from kvcommons_cli import control, tables

HEADINGS = ("REQUEST", "AGE", "PROMPT", "OWN", "COMMONS", "COMPUTED", "WHY NOT MORE")


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("why", __doc__)
    parser.add_argument("request", nargs="?", default="", help="x-request-id of one request; the last ones without")
    parser.add_argument("--missed", action="store_true", help="only those that reused less than they might have")
    parser.add_argument("--limit", type=int, default=20, help="how many (default 20, at most 500)")
    control.add_output(parser)
    options = parser.parse_args(argv)

    def act() -> int:
        asked = f"request={quote(options.request)}&limit={options.limit}&missed={str(options.missed).lower()}"
        answer = control.ask(options, "GET", f"/v1/requests?{asked}")
        if options.output == "json":
            return control.show(answer)
        found = control.items(answer, "requests")
        if not found:
            kept = f"of the last {answer['kept']} that ended on engines of this node"
            sys.stderr.write(f"kvcommons why: no such request {kept}; one that still runs is not there yet\n")
            return control.REFUSED_STATUS
        return _show(found)

    return control.told("why", act)


def _show(found: Sequence[Any]) -> int:
    rows = [
        (
            one["request_id"],
            tables.span(one["age_seconds"]),
            *(str(one[f"{name}_tokens"]) for name in ("prompt", "own", "commons", "computed")),
            one["reason"],
        )
        for one in found
    ]
    reasons = {one["reason"]: one["explanation"] for one in found if one["reason"]}
    words = "".join(f"\n{reason}: {explanation}" for reason, explanation in sorted(reasons.items()))
    sys.stdout.write(f"{tables.table(HEADINGS, rows)}\n{words}{chr(10) if words else ''}")
    return 0
