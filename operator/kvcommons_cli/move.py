"""Move chunks of a text between a node's memory and its tiers, or to another node, as a job of the node."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_cli import chain, control, jobs, spread


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("move", __doc__)
    chain.add_arguments(parser)
    parser.add_argument("--from", dest="source", help="memory or a tier (default memory; to a node: every place)")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--to", dest="target", help="the other one")
    to.add_argument("--to-node", metavar="NODE", help="the memory of this node of the pool")
    parser.add_argument("--keep", action="store_true", help="copy: the source keeps them")
    parser.add_argument("--name", help="of the job: the same call again does not begin it anew")
    parser.add_argument("--detach", action="store_true", help="don't wait for the end of the job")
    spread.add_nodes(parser)
    control.add_output(parser)
    options = parser.parse_args(argv)

    def act() -> int:
        given = {"source": options.source, "target": options.target, "node": options.to_node, "name": options.name}
        body = {**chain.body_of(options), **{name: value for name, value in given.items() if value is not None}}
        body |= {"keep": True} if options.keep else {}
        if options.all_nodes or options.nodes:
            return spread.run(options, spread.Call("move", "POST", "/v1/move", body), jobs.show)
        return jobs.begin(options, "/v1/move", body)

    return control.told("move", act)
