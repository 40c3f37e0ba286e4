"""The native hashes equal those of hashlib and of the xxhash package, and refuse what they cannot hash."""

import array
import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_core import _native

ROOT = hashlib.sha256(b"root").digest()
CHUNK_TOKENS = 16

token_ids = st.lists(st.integers(min_value=0, max_value=2**32 - 1), max_size=5 * CHUNK_TOKENS)
seeds = st.integers(min_value=0, max_value=2**64 - 1)


def chain_by_hashlib(parent: bytes, tokens: Sequence[int], identities: dict[int, bytes]) -> bytes:
    """The chain as the documentation defines it, one step at a time."""
    keys = []
    for index in range(len(tokens) // CHUNK_TOKENS):
        chunk = tokens[index * CHUNK_TOKENS : (index + 1) * CHUNK_TOKENS]
        packed = struct.pack(f"<{CHUNK_TOKENS}I", *chunk)
        parent = hashlib.sha256(parent + packed + identities.get(index, b"")).digest()
        keys.append(parent)
    return b"".join(keys)


@given(tokens=token_ids, identities=st.dictionaries(st.integers(min_value=0, max_value=6), st.binary(max_size=80)))
def test_chain_equals_the_chain_by_hashlib(tokens: list[int], identities: dict[int, bytes]) -> None:
    """Each whole chunk's key is SHA-256 of its parent, its ids and its identity; the rest has none."""
    got = _native.chain_keys(ROOT, tokens, CHUNK_TOKENS, sorted(identities.items()))
    assert got == chain_by_hashlib(ROOT, tokens, identities)


@given(tokens=token_ids, cut=st.integers(min_value=0, max_value=5))
def test_chain_extended_from_a_parent_equals_the_whole(tokens: list[int], cut: int) -> None:
    """A chain may be continued from any of its keys, and the rest comes out the same."""
    whole = _native.chain_keys(ROOT, tokens, CHUNK_TOKENS)
    keys_before = min(cut, len(whole) // 32)
    parent = whole[32 * (keys_before - 1) : 32 * keys_before] if keys_before else None
    rest = _native.chain_keys(ROOT, tokens[keys_before * CHUNK_TOKENS :], CHUNK_TOKENS, parent=parent)
    assert whole[32 * keys_before :] == rest


def test_every_kind_of_array_gives_the_same_keys() -> None:
    """Lists, tuples, arrays and numpy arrays of each integer width agree."""
    tokens = [(index * 7919) % 50_000 for index in range(64)]
    want = _native.chain_keys(ROOT, tokens, CHUNK_TOKENS)
    others: list[object] = [
        tuple(tokens),
        array.array("I", tokens),
        array.array("i", tokens),
        array.array("q", tokens),
        np.array(tokens, dtype=np.uint32),
        np.array(tokens, dtype=np.int32),
        np.array(tokens, dtype=np.int64),
        memoryview(array.array("I", tokens)),
    ]
    assert all(_native.chain_keys(ROOT, other, CHUNK_TOKENS) == want for other in others)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([5, -1], r"tokens\[1\] is -1, outside 0\.\.4294967295"),
        ([2**32], r"tokens\[0\] is 4294967296, outside"),
        ([0, "one"], r"tokens\[1\] is 'one'"),
        (array.array("i", [0, 1, -7]), r"tokens\[2\] is -7"),
        (array.array("q", [2**40]), r"tokens\[0\] is 1099511627776"),
        (np.array([1.5]), r'tokens is a ndarray of format "d": pass a C-contiguous buffer'),
        (np.arange(8)[::2], r"tokens is a ndarray that gives no C-contiguous buffer"),
        ("text", r"tokens is a str: pass a C-contiguous buffer"),
        (b"bytes", r'tokens is a bytes of format "B"'),
        (7, r"tokens is a int"),
    ],
)
def test_tokens_that_are_none_are_refused_by_name_and_value(tokens: object, message: str) -> None:
    """The message says which argument, which value and what to pass instead."""
    with pytest.raises(ValueError, match=message):
        _native.chain_keys(ROOT, tokens, 1)


def test_bad_keys_chunks_and_identities_are_refused() -> None:
    """A key of a wrong size, no chunk size, and identities out of order name themselves."""
    with pytest.raises(ValueError, match="root has 3 bytes, not 32"):
        _native.chain_keys(b"abc", [1], 1)
    with pytest.raises(ValueError, match="parent has 0 bytes, not 32"):
        _native.chain_keys(ROOT, [1], 1, parent=b"")
    with pytest.raises(ValueError, match="chunk_tokens is 0, outside"):
        _native.segment_keys(ROOT, [1], 0)
    with pytest.raises(ValueError, match="identities names chunk 1 after 1"):
        _native.chain_keys(ROOT, [1, 2], 1, [(1, b"a"), (1, b"b")])


@given(tokens=token_ids)
def test_segment_keys_are_hashes_over_the_root_alone_in_their_own_domain(tokens: list[int]) -> None:
    """Where a segment stands does not matter, and none equals the key of a chain."""
    keys = _native.segment_keys(ROOT, tokens, CHUNK_TOKENS)
    for index in range(len(tokens) // CHUNK_TOKENS):
        packed = struct.pack(f"<{CHUNK_TOKENS}I", *tokens[index * CHUNK_TOKENS : (index + 1) * CHUNK_TOKENS])
        want = hashlib.sha256(b"kvcommons.segment.v1" + ROOT + packed).digest()
        assert keys[32 * index : 32 * index + 32] == want
    assert len(keys) == 32 * (len(tokens) // CHUNK_TOKENS)


@given(data=st.binary(max_size=3_000), seed=seeds, offset=st.integers(min_value=0, max_value=9))
def test_hashes_of_bytes_equal_the_reference(data: bytes, seed: int, offset: int) -> None:
    """SHA-256 and seeded XXH3 agree with the references at any length and alignment."""
    view = memoryview(data)[offset:]
    assert _native.sha256(view) == hashlib.sha256(view).digest()
    assert _native.xxh3_64(view, seed) == xxhash.xxh3_64_intdigest(bytes(view), seed)


def test_xxh3_of_long_inputs_equals_the_reference() -> None:
    """The path over many blocks, at lengths around the ends of stripes and blocks."""
    data = bytes((index * 31 + index // 251) % 256 for index in range(70_000))
    for length in [*range(0, 1_100, 13), *range(2_040, 2_060), 4_095, 4_096, 4_097, 65_536, 70_000]:
        assert _native.xxh3_64(data[:length]) == xxhash.xxh3_64_intdigest(data[:length])


def test_cpu_features_are_named() -> None:
    """What the dispatch rests on can be read from Python."""
    assert set(_native.cpu_features()) == {"avx2", "avx512", "sha", "armv8_sha2"}
