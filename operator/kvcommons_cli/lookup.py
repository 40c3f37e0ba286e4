"""Ask a node where the chunks of a text are: in memory, on its tiers, and on which other nodes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kvcommons_cli import chain, control, spread, tables

HEADINGS = ("CHUNKS", "COUNT", "HERE", "ELSEWHERE")


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("lookup", __doc__)
    chain.add_arguments(parser)
    parser.add_argument("--where", action="store_true", help="ask the index, too, which other nodes hold them")
    parser.add_argument("--engines", action="store_true", help="say, too, what of the engines' own caches is not known")
    spread.add_nodes(parser)
    control.add_output(parser)
    options = parser.parse_args(argv)

    def act() -> int:
        body = chain.body_of(options)
        if options.where:
            body["nodes"] = True
        if options.engines:
            body["engines"] = True
        return spread.run(options, spread.Call("lookup", "POST", "/v1/lookup", body), show)

    return control.told("lookup", act)


def show(answer: Mapping[str, Any]) -> int:
    rows = [
        (
            f"{run['first']}-{run['first'] + run['chunks'] - 1}",
            str(run["chunks"]),
            ", ".join(run["places"]),
            ", ".join(f"{one['node']} ({one['tier']})" for one in run.get("nodes", ())),
        )
        for run in control.items(answer, "runs")
    ]
    lines = [tables.table(HEADINGS, rows)] if rows else []
    if answer.get("runs_left"):
        lines.append(f"({answer['runs_left']} more; -o json does not tell them either: ask for a part of the chain)")
    lines.append(
        f"{answer['hit_chunks']} of {answer['chunks']} leading chunks ({answer['hit_tokens']} tokens) in memory, "
        f"{answer['here_chunks']} on this node"
    )
    lines += [f"note: {limit}" for limit in answer.get("limits", ())]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
