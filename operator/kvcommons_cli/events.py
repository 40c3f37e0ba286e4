"""Follow what happens on a node: chunks committed and freed, requests that ended, engines that come and go."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from kvcommons_cli import control, talk

IDLE_SECONDS_MAX = 60.0
"""The node sends something every 15 s."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("events", __doc__)
    parser.add_argument(
        "--kinds",
        default="",
        help="committed, freed, moved, request, session_opened, session_closed, job, with commas (all)",
    )
    options = parser.parse_args(argv)

    def act() -> int:
        url = f"{options.url.rstrip('/')}/v1/events?kinds={quote(options.kinds)}"
        for kind, fields in follow(url, control.headers(options), control.tls(options)):
            sys.stdout.write(json.dumps({"event": kind, **fields}) + "\n")
            sys.stdout.flush()
        return 0

    try:
        return control.told("events", act)
    except KeyboardInterrupt:
        return 0


def follow(
    url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """Server-sent events until the node ends. :raises talk.TalkError: if it is refused or falls silent."""
    kind = ""
    for line in talk.lines("GET", url, headers, IDLE_SECONDS_MAX, tls):
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)
