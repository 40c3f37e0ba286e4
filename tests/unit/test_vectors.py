"""The published vectors hold, checked by an implementation that shares nothing with the product but the specification."""

import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import xxhash
from kvcommons_core import keys, textkeys
from vectors import make_keys

FILE = Path(__file__).resolve().parents[1] / "vectors" / "keys.json"


@pytest.fixture(scope="module")
def vectors() -> Any:
    return json.loads(FILE.read_text())


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def chunks_of(case: Any) -> list[bytes]:
    size = case["chunk_tokens"]
    tokens = case["tokens"]
    return [struct.pack(f"<{size}I", *tokens[at : at + size]) for at in range(0, len(tokens) - size + 1, size)]


def test_the_file_is_what_the_code_makes() -> None:
    """A change of any key format shows as a change of the published file."""
    assert FILE.read_text() == make_keys.rendered()


def test_fingerprint_is_the_sha256_of_sorted_compact_json(vectors: Any) -> None:
    """Another language gets the fingerprint by hashing the canonical JSON, which it can make by sorting keys without spaces."""
    text = vectors["fingerprint"]["canonical_json"]
    assert sha256(text.encode()).hex() == vectors["fingerprint"]["sha256"]
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
    assert "." not in text


def test_namespace_roots_follow_the_specification(vectors: Any) -> None:
    """A root is SHA-256 of the fingerprint and the HMAC of the salt."""
    for case in vectors["namespace_roots"]:
        salted = hmac.new(bytes.fromhex(case["secret"]), case["salt"].encode(), "sha256").digest()
        assert sha256(bytes.fromhex(case["fingerprint"]), salted).hex() == case["root"]


def test_token_keys_follow_the_specification(vectors: Any) -> None:
    """Each key is SHA-256 of its parent, its ids and its identity."""
    case = vectors["token_keys"]
    identities = {index: bytes.fromhex(record) for index, record in case["identities"]}
    plain = parent = bytes.fromhex(case["root"])
    for index, chunk in enumerate(chunks_of(case)):
        plain = sha256(plain, chunk)
        parent = sha256(parent, chunk, identities.get(index, b""))
        assert case["plain"][index] == plain.hex()
        assert case["with_identities"][index] == parent.hex()


def test_identity_records_follow_the_specification(vectors: Any) -> None:
    """The LoRA record stands in chunk 0; the item, 30 tokens from token 20 on, in the chunks that it overlaps."""
    identities = dict(vectors["token_keys"]["identities"])
    item = b"\xaa" * 32
    assert identities[0] == (b"L" + struct.pack("<H", 32) + bytes(32)).hex()
    assert sorted(identities) == [0, 1, 2, 3]
    for chunk in (1, 2, 3):
        payload = struct.pack("<iI", 20 - chunk * 16, 30) + item
        assert identities[chunk] == (b"M" + struct.pack("<H", len(payload)) + payload).hex()


def test_segment_keys_follow_the_specification(vectors: Any) -> None:
    """A segment's key is SHA-256 of a word of its own kind, a root and its ids; the root is another one under an adapter."""
    case = vectors["segment_keys"]
    for made in case["of"]:
        root, record = bytes.fromhex(case["root"]), bytes.fromhex(made["identity"])
        if record:
            root = sha256(b"kvcommons.segment-identity.v1", root, record)
        assert root.hex() == made["segment_root"]
        assert [sha256(b"kvcommons.segment.v1", root, c).hex() for c in chunks_of(vectors["token_keys"])] == made[
            "keys"
        ]


def test_text_keys_follow_the_specification(vectors: Any) -> None:
    """A text key is XXH3-64 of its step, seeded with the key before; the seed hashes the four names with their lengths."""
    case = vectors["text_keys"]
    framed = b"".join(struct.pack("<I", len(part.encode())) + part.encode() for part in case["seed_of"])
    assert f"{xxhash.xxh3_64_intdigest(framed):016x}" == case["seed"]
    for one in case["requests"]:
        canonical, key, made = bytes.fromhex(one["canonical"]), int(case["seed"], 16), []
        for at in range(0, len(canonical) - 2047, 2048):
            key = xxhash.xxh3_64_intdigest(canonical[at : at + 2048], key)
            made.append(f"{key:016x}")
        assert made == one["keys"]
        assert made, "a vector without a key proves nothing"


def test_both_implementations_agree_with_the_file(vectors: Any) -> None:
    """What the product runs (native where built) gives the published keys, from parsed JSON."""
    case = vectors["token_keys"]
    root = bytes.fromhex(case["root"])
    identities = [(index, bytes.fromhex(record)) for index, record in case["identities"]]
    assert keys.token_keys(root, case["tokens"], case["chunk_tokens"]).hex() == "".join(case["plain"])
    made = keys.token_keys(root, case["tokens"], case["chunk_tokens"], identities)
    assert made.hex() == "".join(case["with_identities"])
    for of in vectors["segment_keys"]["of"]:
        segment_root = keys.segment_root(root, bytes.fromhex(of["identity"]))
        assert keys.segment_keys(segment_root, case["tokens"], case["chunk_tokens"]).hex() == "".join(of["keys"])
    for one in vectors["text_keys"]["requests"]:
        assert textkeys.canonical_text(one["request"])[0].hex() == one["canonical"]
