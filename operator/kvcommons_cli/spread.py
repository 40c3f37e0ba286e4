"""One call for a node, or for every node of its pool: the flags, the call, and what came of it node by node."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from kvcommons_cli import control, tables

HEADINGS = ("NODE", "OK", "TOOK", "ANSWER")
ANSWER_CHARACTERS_MAX = 100


@dataclass(frozen=True)
class Call:
    """One operation of the control API."""

    operation: str
    method: str
    path: str
    body: Mapping[str, object]
    """Of a GET: its query."""


def add_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all-nodes", action="store_true", help="every node of the pool, as the index knows them; any of them is asked"
    )
    parser.add_argument("--node", action="append", dest="nodes", help="only these nodes of the pool; repeatable")


def run(options: argparse.Namespace, call: Call, show: Callable[[Mapping[str, Any]], int]) -> int:
    """Asks one node, or all. The status is 1 where any node did not do it.

    :raises talk.TalkError: if the node that is asked refuses, or does not answer."""
    if options.all_nodes or options.nodes:
        body = {"operation": call.operation, "body": dict(call.body), "nodes": options.nodes or []}
        answer = control.ask(options, "POST", "/v1/cluster", body)
        failed = answer.get("failed")
        if options.output == "json":
            control.show(answer)
        else:
            sys.stdout.write(table(answer) + "\n")
        return 0 if failed == 0 else control.REFUSED_STATUS
    if call.method == "GET":
        query = f"?{urlencode(call.body)}" if call.body else ""
        answer = control.ask(options, "GET", call.path + query)
    else:
        answer = control.ask(options, call.method, call.path, dict(call.body))
    return control.show(answer) if options.output == "json" else show(answer)


def table(answer: Mapping[str, Any]) -> str:
    """A line a node, those that did not do it first, and why."""
    results = sorted(control.items(answer, "nodes"), key=lambda one: (one["ok"], one["node"]))
    rows = [
        (
            one["node"],
            "yes" if one["ok"] else "NO",
            f"{one['seconds']:.1f} s",
            short(one["answer"]) if one["ok"] else one["error"],
        )
        for one in results
    ]
    lines = [tables.table(HEADINGS, rows)] if rows else ["no node is in the index"]
    if answer.get("failed"):
        lines.append(f"{answer['failed']} of {len(rows)} nodes did not do it; the others did")
    return "\n".join(lines)


def short(answer: Mapping[str, Any]) -> str:
    """The plain values of an answer, in one line."""
    parts = []
    for name, value in answer.items():
        if isinstance(value, dict):
            parts += [f"{name}.{key}={one}" for key, one in value.items() if isinstance(one, (int, float, str))]
        elif isinstance(value, list):
            parts.append(f"{len(value)} {name}")
        elif value not in (None, ""):
            parts.append(f"{name}={value}")
    line = " ".join(parts)
    return line if len(line) <= ANSWER_CHARACTERS_MAX else line[: ANSWER_CHARACTERS_MAX - 1] + "…"
