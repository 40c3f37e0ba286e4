"""Make a node forget chunks: all, or by fingerprint, model, tenant, key, age and tier."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kvcommons_cli import chain, control, spread


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.all == any(one is not None for one in (*_filters(options).values(), options.tokens)):
        parser.error("give --all, or what is meant (--fingerprint, --model, --salt, --older-than), and not both")

    def act() -> int:
        return spread.run(options, spread.Call("clear", "POST", "/v1/clear", body_of(options)), show)

    return control.told("clear", act)


def _parser() -> argparse.ArgumentParser:
    parser = control.parser("clear", __doc__)
    parser.add_argument("--all", action="store_true", help="every chunk")
    parser.add_argument("--fingerprint", help="as `kvcommons stats` lists it, or its first digits")
    parser.add_argument("--model", help="every fingerprint whose engines serve it under this name")
    parser.add_argument("--salt", help="the tenant with this cache_salt; an empty one: those of no tenant")
    parser.add_argument("--key", action="append", dest="keys", help="a chunk's key and what follows it; repeatable")
    parser.add_argument("--tokens", metavar="FILE", help="the text of this JSON array of token ids; - standard input")
    parser.add_argument("--chunk-tokens", type=int, help="tokens in a chunk of this engine (default 256)")
    parser.add_argument(
        "--older-than", type=control.seconds, metavar="TIME", help="stored longer ago than 90s, 30m, 12h or 7d"
    )
    parser.add_argument("--tier", action="append", dest="tiers", help="only there: memory, disk, ...; repeatable")
    parser.add_argument("--engines", action="store_true", help="the engines' own caches, too, as a whole")
    spread.add_nodes(parser)
    control.add_output(parser)
    return parser


def _filters(options: argparse.Namespace) -> dict[str, object]:
    return {
        "fingerprint": options.fingerprint,
        "model": options.model,
        "salt": options.salt,
        "keys": options.keys,
        "older_than_seconds": options.older_than,
    }


def body_of(options: argparse.Namespace) -> dict[str, object]:
    """What was given and nothing else. :raises InputError: if the file of tokens is no JSON."""
    body: dict[str, object] = {"all": True} if options.all else {}
    body |= {name: value for name, value in _filters(options).items() if value is not None}
    if options.tokens is not None:
        body["tokens"] = chain.tokens_of(options.tokens)
    if options.chunk_tokens is not None:
        body["chunk_tokens"] = options.chunk_tokens
    if options.tiers:
        body["tiers"] = options.tiers
    if options.engines:
        body["engines"] = True
    return body


def show(answer: Mapping[str, Any]) -> int:
    shards = answer.get("tier_shards", {})
    tiers = "".join(f", {count} shards from {name}" for name, count in shards.items())
    pins = f", {answer['pins']} pins ended" if answer.get("pins") else ""
    lines = [f"cleared {answer['chunks']} chunks from memory{tiers}{pins}"]
    lines += [
        f"{one['engine']}: {one['outcome'].replace('_', ' ')}{': ' if one['detail'] else ''}{one['detail']}"
        for one in answer.get("engines", ())
    ]
    lines += [f"note: {limit}" for limit in answer.get("limits", ())]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
