"""Writes keys.json beside this file: inputs and the keys that every implementation must make of them.

python tests/vectors/make_keys.py           writes it
python tests/vectors/make_keys.py --check   fails if it would change
"""

import json
import sys
from pathlib import Path

from kvcommons_core import keys, textkeys
from kvcommons_core.fingerprint import KvGroup, ModelIdentity

FILE = Path(__file__).with_name("keys.json")
SECRET = bytes(range(32))
CHUNK_TOKENS = 16

IDENTITY = ModelIdentity(
    weights="revision:" + "0123456789abcdef" * 2 + "01234567",
    generation="0",
    compute_dtype="bfloat16",
    weight_quantization="none",
    kv_dtype="bfloat16",
    kv_quantization="none",
    groups=(
        KvGroup(kind="full", layers=(0, 2), kv_heads=3, head_size=64, block_tokens=16, window_tokens=0),
        KvGroup(kind="sliding_window", layers=(1, 3), kv_heads=3, head_size=64, block_tokens=16, window_tokens=4096),
    ),
    attention="standard",
    chunk_tokens=CHUNK_TOKENS,
    rope={"rope_theta": 100000.0, "rope_type": "yarn", "factor": 2.5, "mscale": 0.1, "truncate": True, "note": None},
    context_parallel=1,
    context_parallel_interleave=1,
    engine_family="vllm",
    layout="runs",
    layout_version=1,
)

REQUESTS: dict[str, dict[str, object]] = {
    "prompt": {"model": "m", "prompt": "Grüße, мир! " * 400},
    "prompt_ids": {"model": "m", "prompt": [index * 31 % 50_000 for index in range(1_500)]},
    "chat": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "0123456789abcdef" * 300},
            {"role": "assistant", "content": "Yes.", "name": "a"},
            {"role": "user", "content": [{"type": "text", "text": "and now?"}, {"type": "text", "text": "well"}]},
        ],
    },
    "chat_with_tools_and_image": {
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": [1.5, None, True]}}}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "text", "text": "what is it? " * 400},
                ],
            }
        ],
    },
}


def tokens_of(count: int) -> list[int]:
    """Ids without a pattern that any implementation has to have agreed on: i * 2654435761 mod 2**32."""
    return [index * 2654435761 % 2**32 for index in range(count)]


def segments(root: bytes, tokens: list[int], identity: bytes) -> dict[str, object]:
    """Segment keys without and with an adapter."""
    segment_root = keys.segment_root(root, identity)
    made = keys.split_keys(keys.segment_keys_reference(segment_root, tokens, CHUNK_TOKENS))
    return {"identity": identity.hex(), "segment_root": segment_root.hex(), "keys": [key.hex() for key in made]}


def vectors() -> dict[str, object]:
    """The whole file's content."""
    fingerprint = IDENTITY.fingerprint()
    roots = {salt: keys.namespace_root(fingerprint, SECRET, salt) for salt in ("", "tenant-a", "Mandant Ä")}
    root = roots["tenant-a"]
    identities = keys.chunk_identities(
        5 * CHUNK_TOKENS, CHUNK_TOKENS, lora=bytes(32), items=[keys.MultimodalItem(20, 30, b"\xaa" * 32)]
    )
    tokens = tokens_of(5 * CHUNK_TOKENS + 3)
    chain = keys.split_keys(keys.token_keys_reference(root, tokens, CHUNK_TOKENS, identities))
    seed = textkeys.text_seed("m", "", "tenant-a", "salt")
    return {
        "about": "Test vectors of kvcommons' keys. Bytes are hex; text keys are 64-bit numbers as 16 hex digits.",
        "fingerprint": {
            "canonical_json": IDENTITY.canonical_json().decode(),
            "sha256": fingerprint.hex(),
        },
        "namespace_roots": [
            {"fingerprint": fingerprint.hex(), "secret": SECRET.hex(), "salt": salt, "root": value.hex()}
            for salt, value in roots.items()
        ],
        "token_keys": {
            "root": root.hex(),
            "chunk_tokens": CHUNK_TOKENS,
            "tokens": tokens,
            "plain": [k.hex() for k in keys.split_keys(keys.token_keys_reference(root, tokens, CHUNK_TOKENS))],
            "identities": [[index, record.hex()] for index, record in identities],
            "with_identities": [k.hex() for k in chain],
        },
        "segment_keys": {
            "root": root.hex(),
            "of": [segments(root, tokens, identity) for identity in (b"", keys.lora_record(bytes(32)))],
        },
        "text_keys": {
            "seed_of": ["m", "", "tenant-a", "salt"],
            "seed": f"{seed:016x}",
            "requests": [
                {
                    "name": name,
                    "request": request,
                    "canonical": textkeys.canonical_text(request)[0].hex(),
                    "keys": [f"{key:016x}" for key in textkeys.text_keys(request, seed).keys],
                }
                for name, request in REQUESTS.items()
            ],
        },
    }


def rendered() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=True) + "\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        return 0 if FILE.read_text() == rendered() else 1
    FILE.write_text(rendered())
    return 0


if __name__ == "__main__":
    sys.exit(main())
