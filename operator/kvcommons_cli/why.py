"""Say what the last requests reused, and why not more: of one request what was expected, and the reason of each missed chunk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kvcommons_cli import control, tables, talk

HEADINGS = ("REQUEST", "AGE", "PROMPT", "OWN", "COMMONS", "COMPUTED", "WHY NOT MORE")
CHUNK_HEADINGS = ("CHUNKS", "WHY", "WHEN", "WHICH MEANS")
ASKED_MAX = 64
"""Connections to a router of several workers: each knows its own requests, and which one answers is chance."""
PREDICTED = "predicted_tokens"


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("why", __doc__)
    parser.add_argument("request", nargs="?", default="", help="x-request-id of one request; the last ones without")
    parser.add_argument("--missed", action="store_true", help="only those that reused less than they might have")
    parser.add_argument("--limit", type=int, default=20, help="how many (default 20, at most 500)")
    parser.add_argument("--router", type=control.address, help="the router, for what it expected of the request")
    parser.add_argument(
        "--api-key-file", type=Path, help="file with the API key of who sent it, where the router wants one"
    )
    control.add_output(parser)
    options = parser.parse_args(argv)

    def act() -> int:
        expected = _expected(options) if options.router and options.request else None
        answer, unreached = _reported(options, expected)
        if expected is not None:
            answer |= {"router": expected}
        found = control.items(answer, "requests")
        if options.output == "json":
            return control.show(answer | ({"unreached": unreached} if unreached else {}))
        for line in unreached:
            sys.stderr.write(f"kvcommons why: {line}\n")
        if not found and expected is None:
            kept = f"of the last {answer['kept']} that ended on engines of this node"
            sys.stderr.write(f"kvcommons why: no such request {kept}; one that still runs is not there yet\n")
            return control.REFUSED_STATUS
        return _show(found, expected, bool(options.request))

    return control.told("why", act)


def _expected(options: argparse.Namespace) -> dict[str, Any] | None:
    """What the router remembers; None where it does not.

    :raises talk.TalkError: if it does not answer, or refuses the key."""
    headers = {}
    if options.api_key_file is not None:
        headers["Authorization"] = f"Bearer {options.api_key_file.read_text().strip()}"
    url = f"{options.router.rstrip('/')}/kvcommons/v1/requests/{quote(options.request, safe='')}"
    for _ in range(ASKED_MAX):
        try:
            return talk.call_json("GET", url, None, headers=headers, seconds_max=control.SECONDS_MAX)
        except talk.TalkError as error:
            if error.status != 404:
                raise
            if "worker of 1:" in error.detail:
                return None
    return None


def _reported(options: argparse.Namespace, expected: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """What the node that is asked remembers; of a request that is not there, what the node does where it went, or any of the pool.
    Beside it whom it was not heard of.

    :raises talk.TalkError: if the node that is asked does not answer."""
    asked = f"request={quote(options.request)}&limit={options.limit}&missed={str(options.missed).lower()}"
    answer = control.ask(options, "GET", f"/v1/requests?{asked}")
    if answer.get("requests") or not options.request:
        return answer, []
    node = (expected or {}).get("node")
    body = {"operation": "requests", "body": {"request": options.request}, "nodes": [node] if node else []}
    try:
        results = control.items(control.ask(options, "POST", "/v1/cluster", body), "nodes")
    except talk.TalkError as error:
        return answer, [] if node is None else [f"{node}: {control.explained(error)}"]
    found = next((one for one in results if one["answer"].get("requests")), None)
    unreached = [f"{one['node']}: {one['error']}" for one in results if not one["ok"]]
    return (found["answer"] | {"node": found["node"]} if found else answer), ([] if found else unreached)


def _show(found: Sequence[Any], expected: Mapping[str, Any] | None, one: bool) -> int:
    if found:
        rows = [
            (
                each["request_id"],
                tables.span(each["age_seconds"]),
                *(str(each[f"{name}_tokens"]) for name in ("prompt", "own", "commons", "computed")),
                each["reason"],
            )
            for each in found
        ]
        reasons = {each["reason"]: each["explanation"] for each in found if each["reason"]}
        words = "".join(f"\n{reason}: {explanation}" for reason, explanation in sorted(reasons.items()))
        sys.stdout.write(f"{tables.table(HEADINGS, rows)}\n{words}{chr(10) if words else ''}")
    if expected is not None:
        sys.stdout.write(prediction(expected))
    if one:
        for each in found:
            if each.get("missed"):  # a node of a former version says nothing of chunks
                sys.stdout.write(f"\n{tables.table(CHUNK_HEADINGS, [chunk_row(run) for run in each['missed']])}\n")
    return 0


def prediction(expected: Mapping[str, Any]) -> str:
    """What the router expected, and whether it came true."""
    places = expected[PREDICTED]
    total = sum(places.values())
    where = ", ".join(f"{tokens} {place}" for place, tokens in places.items() if tokens) or "nothing"
    gone = ", which has left since" if expected["replica_gone"] else ""
    node = f" on node {expected['node']}" if expected["node"] else ""
    lines = [f"\nexpected at dispatch: {where} (tokens), at replica {expected['replica']}{node}{gone}\n"]
    reported = expected["reported"]
    if reported is None:
        lines.append("reused: not reported; it still runs, or its engine does not report\n")
    else:
        reused = reported["own_tokens"] + reported["commons_tokens"]
        much = f"{total - reused} fewer than expected" if reused < total else "as expected or more"
        lines.append(f"reused: {reused} tokens, {much}\n")
    return "".join(lines)


def chunk_row(run: Mapping[str, Any]) -> tuple[str, ...]:
    """One line for chunks that were missed for one reason."""
    chunks = str(run["first"]) if run["first"] == run["last"] else f"{run['first']}-{run['last']}"
    when = ""
    if run["seconds_before"] is not None:
        when = f"{tables.span(run['seconds_before'])} before, {tables.span(run['lived_seconds'])} old"
    peers = f" ({', '.join(run['peers'])})" if run["peers"] else ""
    return chunks, run["why"], when, run["explanation"] + peers
