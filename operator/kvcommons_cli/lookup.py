"""Ask a node which leading chunks of a text's tokens, or of a chain of keys, it holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kvcommons_cli import control


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("lookup", __doc__)
    parser.add_argument(
        "--fingerprint", required=True, help="of the engine: as `kvcommons stats` lists it, or its first digits"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", action="append", dest="keys", help="token key of a chunk, from the first on; repeatable")
    what.add_argument("--tokens", metavar="FILE", help="a JSON array of token ids; - reads standard input")
    parser.add_argument("--salt", help="cache_salt of the tenant (with --tokens)")
    parser.add_argument("--chunk-tokens", type=int, help="tokens in a chunk of this engine (default 256)")
    options = parser.parse_args(argv)

    def act() -> int:
        body: dict[str, object] = {"fingerprint": options.fingerprint}
        if options.keys is not None:
            body["keys"] = options.keys
        else:
            body["tokens"] = _tokens(options.tokens)
        if options.salt is not None:
            body["salt"] = options.salt
        if options.chunk_tokens is not None:
            body["chunk_tokens"] = options.chunk_tokens
        return control.show(control.ask(options, "POST", "/v1/lookup", body))

    try:
        return control.told("lookup", act)
    except ValueError as error:
        sys.stderr.write(f"kvcommons lookup: {options.tokens} holds no JSON array of token ids: {error}\n")
        return control.REFUSED_STATUS


def _tokens(source: str) -> object:
    text = sys.stdin.read() if source == "-" else Path(source).read_text()
    return json.loads(text)
