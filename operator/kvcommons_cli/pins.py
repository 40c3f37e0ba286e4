"""List a node's pins: which chunks eviction leaves alone, and for how long."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from kvcommons_cli import control, tables

HEADINGS = ("NAME", "FINGERPRINT", "CHUNKS", "SIZE", "AGE", "LEFT")
SHOWN_DIGITS = 12
PAGES_MAX = 100


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("pins", __doc__)
    control.add_output(parser)
    options = parser.parse_args(argv)

    def act() -> int:
        answer = control.ask(options, "GET", "/v1/pins?limit=1000")
        found = list(control.items(answer, "pins"))
        page = answer
        for _ in range(PAGES_MAX):
            if not page["next"]:
                break
            page = control.ask(options, "GET", f"/v1/pins?limit=1000&after={quote(str(page['next']))}")
            found += control.items(page, "pins")
        if options.output == "json":
            return control.show({**answer, "pins": found, "next": ""})
        return show(found, answer)

    return control.told("pins", act)


def show(found: Iterable[Any], answer: Mapping[str, Any]) -> int:
    rows = [
        (
            one["name"],
            one["fingerprint"][:SHOWN_DIGITS],
            str(one["chunks"]),
            tables.size(one["bytes"]),
            tables.span(one["age_seconds"]),
            tables.span(one["ttl_seconds"]),
        )
        for one in found
    ]
    used = f"{tables.size(answer['pinned_bytes'])} pinned, of {tables.size(answer['pinned_bytes_max'])} at most"
    sys.stdout.write(f"{tables.table(HEADINGS, rows)}\n{used}\n" if rows else f"no pins; {used}\n")
    return 0
