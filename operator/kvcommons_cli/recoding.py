"""What `kvcommons compress` and `decompress` have in common: which chunks, of which tier, and the job."""

from __future__ import annotations

import argparse

from kvcommons_cli import chain, control, jobs, spread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--fingerprint", help="only this: as `kvcommons stats` lists it, or its first digits")
    of.add_argument("--model", help="only every fingerprint whose engines serve it under this name")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--key", action="append", dest="keys", help="only this chunk, with --fingerprint; repeatable")
    some.add_argument(
        "--tokens", metavar="FILE", help="only the text of this JSON array of token ids; - standard input"
    )
    parser.add_argument("--salt", help="cache_salt of the tenant (with --tokens)")
    parser.add_argument("--chunk-tokens", type=int, help="tokens in a chunk of this engine (default 256)")
    parser.add_argument("--tier", help="which one (default the first)")
    parser.add_argument(
        "--no-memory",
        action="store_true",
        help="leave what only memory holds there; else it is written to the tier first",
    )
    parser.add_argument(
        "--bytes-per-second-max", type=int, metavar="BYTES", help="of memory's bytes (default no limit)"
    )
    parser.add_argument("--name", help="of the job: the same call again does not begin it anew")
    parser.add_argument("--detach", action="store_true", help="don't wait for the end of the job")
    spread.add_nodes(parser)
    control.add_output(parser)


def body_of(options: argparse.Namespace) -> dict[str, object]:
    """What was given and nothing else, so that the node's own defaults hold.

    :raises InputError: if the file of tokens is no JSON. :raises OSError: if it can't be read."""
    names = ("fingerprint", "model", "keys", "salt", "chunk_tokens", "tier", "bytes_per_second_max", "name")
    body: dict[str, object] = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.tokens is not None:
        body["tokens"] = chain.tokens_of(options.tokens)
    if options.no_memory:
        body["from_memory"] = False
    return body


def run(options: argparse.Namespace, operation: str, more: dict[str, object]) -> int:
    """As a job of one node, shown until its end, or of several."""

    def act() -> int:
        body = {**more, **body_of(options)}
        if options.all_nodes or options.nodes:
            return spread.run(options, spread.Call(operation, "POST", f"/v1/{operation}", body), jobs.show)
        return jobs.begin(options, f"/v1/{operation}", body)

    return control.told(operation, act)
