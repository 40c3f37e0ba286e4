"""The arguments that name the chunks of one text, for every command that asks a node about some."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from kvcommons_cli.control import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fingerprint", required=True, help="of the engine: as `kvcommons stats` lists it, or its first digits"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", action="append", dest="keys", help="token key of a chunk, from the first on; repeatable")
    what.add_argument("--tokens", metavar="FILE", help="a JSON array of token ids; - reads standard input")
    what.add_argument(
        "--text", metavar="FILE", help="a prompt; an engine of the node makes tokens of it; - reads standard input"
    )
    parser.add_argument("--model", help="with --text: as the engine calls it (default its own)")
    parser.add_argument("--salt", help="cache_salt of the tenant (with --tokens or --text)")
    parser.add_argument("--chunk-tokens", type=int, help="tokens in a chunk of this engine (default 256)")


def body_of(options: argparse.Namespace) -> dict[str, object]:
    """What was given and nothing else, so that the node's own defaults hold.

    :raises InputError: if the file of tokens is no JSON. :raises OSError: if it can't be read."""
    body: dict[str, object] = {"fingerprint": options.fingerprint}
    if options.keys is not None:
        body["keys"] = options.keys
    elif options.text is not None:
        body["text"] = sys.stdin.read() if options.text == "-" else Path(options.text).read_text()
        if options.model is not None:
            body["model"] = options.model
    else:
        body["tokens"] = tokens_of(options.tokens)
    if options.salt is not None:
        body["salt"] = options.salt
    if options.chunk_tokens is not None:
        body["chunk_tokens"] = options.chunk_tokens
    return body


def tokens_of(source: str) -> object:
    """:raises InputError: if the file is no JSON. :raises OSError: if it can't be read."""
    text = sys.stdin.read() if source == "-" else Path(source).read_text()
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{source} holds no JSON array of token ids: {error}") from error
