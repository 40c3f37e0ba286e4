"""Token keys: what makes two chunks the same, and what must make them different."""

import array
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_core import keys
from kvcommons_core.errors import ConfigurationError, LimitExceededError

ROOT = bytes(range(32))
SECRET = b"0123456789abcdef"
CHUNK = 8

tokens_lists = st.lists(st.integers(min_value=0, max_value=2**32 - 1), max_size=6 * CHUNK)
items = st.builds(
    keys.MultimodalItem,
    offset_tokens=st.integers(min_value=0, max_value=50),
    length_tokens=st.integers(min_value=1, max_value=40),
    content_hash=st.binary(min_size=1, max_size=40),
)


@given(tokens=tokens_lists, identities=st.dictionaries(st.integers(0, 7), st.binary(max_size=60)), extend=st.booleans())
def test_native_and_reference_agree(tokens: list[int], identities: dict[int, bytes], extend: bool) -> None:
    """The product's keys are those of the plain-Python reference, at any length, with any identity and parent."""
    parent = bytes(32) if extend else None
    records = sorted(identities.items())
    want = keys.token_keys_reference(ROOT, tokens, CHUNK, records, parent)
    assert keys.token_keys(ROOT, tokens, CHUNK, records, parent) == want
    assert keys.segment_keys(ROOT, tokens, CHUNK) == keys.segment_keys_reference(ROOT, tokens, CHUNK)


@given(tokens=tokens_lists, others=tokens_lists)
def test_two_prompts_share_keys_exactly_as_far_as_whole_chunks_agree(tokens: list[int], others: list[int]) -> None:
    """A key names the whole prefix: after the first differing chunk no key is shared, even where later chunks agree."""
    mine = keys.split_keys(keys.token_keys(ROOT, tokens, CHUNK))
    theirs = keys.split_keys(keys.token_keys(ROOT, others, CHUNK))
    same = 0
    while same < min(len(mine), len(theirs)) and tokens[: (same + 1) * CHUNK] == others[: (same + 1) * CHUNK]:
        same += 1
    assert mine[:same] == theirs[:same]
    assert not set(mine[same:]) & set(theirs[same:])


@given(tokens=tokens_lists, cut=st.integers(0, 6))
def test_a_chain_can_be_extended_from_any_key(tokens: list[int], cut: int) -> None:
    """Extending from a chunk's key gives the same keys as one call from the root."""
    whole = keys.token_keys(ROOT, tokens, CHUNK)
    done = min(cut, len(whole) // 32)
    parent = whole[(done - 1) * 32 : done * 32] if done else None
    assert keys.token_keys(ROOT, tokens[done * CHUNK :], CHUNK, parent=parent) == whole[done * 32 :]


def test_every_root_has_its_own_keys() -> None:
    """Tenants, secrets and fingerprints share nothing: another salt, secret or fingerprint is another root."""
    roots = {
        keys.namespace_root(fingerprint, secret, salt)
        for fingerprint in (bytes(32), ROOT)
        for secret in (SECRET, SECRET + b"x")
        for salt in ("", "a", "b", "aa")
    }
    assert len(roots) == 16
    chains = {keys.token_keys(root, list(range(CHUNK)), CHUNK) for root in roots}
    assert len(chains) == 16


def test_a_short_secret_and_a_wrong_fingerprint_are_refused() -> None:
    """A root made from nothing secret, or from something that is no fingerprint, is refused by name."""
    with pytest.raises(ConfigurationError, match=r"namespace secret: .*at least 16"):
        keys.namespace_root(ROOT, b"short")
    with pytest.raises(ConfigurationError, match=r"fingerprint: '5 bytes'"):
        keys.namespace_root(b"five5", SECRET)


def test_a_segment_key_is_never_a_token_key_and_keeps_adapters_apart() -> None:
    """The same ids under the same root have another key as a segment, and again another one under an adapter."""
    ids = list(range(CHUNK))
    plain = keys.segment_root(ROOT)
    adapted = keys.segment_root(ROOT, keys.lora_record(bytes(32)))
    made = {
        keys.token_keys(ROOT, ids, CHUNK),
        keys.segment_keys(plain, ids, CHUNK),
        keys.segment_keys(adapted, ids, CHUNK),
    }
    assert len(made) == 3


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize(
    "tokens",
    [(1,) * CHUNK, array.array("I", [1] * CHUNK), array.array("i", [1] * CHUNK), array.array("q", [1] * CHUNK)],
)
def test_kinds_of_arrays_agree(tokens: object, reference: bool) -> None:
    """Lists, tuples and arrays of each width give the same keys in both implementations."""
    make = keys.token_keys_reference if reference else keys.token_keys
    assert make(ROOT, tokens, CHUNK) == keys.token_keys_reference(ROOT, [1] * CHUNK, CHUNK)


@pytest.mark.parametrize("tokens", [[-1] * CHUNK, [2**32] * CHUNK, ["a"] * CHUNK, "text", 7, b"12345678"])
@pytest.mark.parametrize("reference", [True, False])
def test_what_is_no_token_id_is_refused(tokens: object, reference: bool) -> None:
    """Neither implementation guesses at ids outside of 32 bits or at things that are none."""
    make = keys.token_keys_reference if reference else keys.token_keys
    with pytest.raises(ValueError, match="tokens"):
        make(ROOT, tokens, CHUNK)


def test_impossible_arguments_are_refused_by_the_reference_too() -> None:
    """Chunk sizes, roots and identities out of range name the argument."""
    with pytest.raises(ConfigurationError, match="chunk_tokens: 0"):
        keys.token_keys_reference(ROOT, [1], 0)
    with pytest.raises(ConfigurationError, match="root"):
        keys.token_keys_reference(b"", [1], 1)
    with pytest.raises(ConfigurationError, match="parent"):
        keys.token_keys_reference(ROOT, [1], 1, parent=b"x")
    with pytest.raises(ConfigurationError, match="ascending"):
        keys.token_keys_reference(ROOT, [1, 2], 1, [(1, b"a"), (0, b"b")])
    with pytest.raises(LimitExceededError, match="chunks: 65537 is over the limit of 65536"):
        keys.token_keys_reference(ROOT, array.array("I", bytes(65_537 * 4)), 1)
    with pytest.raises(ConfigurationError, match="keys"):
        keys.split_keys(b"x" * 33)


# identities ----------------------------------------------------------------------------------------------------------


def parsed(identity: bytes) -> list[tuple[bytes, bytes]]:
    """Records of an identity, read by the format's definition."""
    found = []
    while identity:
        tag, length = identity[:1], struct.unpack_from("<H", identity, 1)[0]
        found.append((tag, identity[3 : 3 + length]))
        identity = identity[3 + length :]
    return found


@given(some=st.lists(items, max_size=4), total=st.integers(0, 90), lora=st.none() | st.binary(min_size=32, max_size=32))
def test_identities_say_what_each_chunk_shows(some: list[keys.MultimodalItem], total: int, lora: bytes | None) -> None:
    """A whole chunk's identity holds exactly the items that overlap it, each with its offset in the chunk, and chunk 0 the adapter."""
    made = dict(keys.chunk_identities(total, CHUNK, lora=lora, items=some))
    for chunk in range(total // CHUNK):
        want = [(b"L", lora)] if lora is not None and chunk == 0 else []
        for item in sorted(some, key=lambda i: (i.offset_tokens, i.length_tokens, i.content_hash)):
            begin = item.offset_tokens - chunk * CHUNK
            if begin < CHUNK and begin + item.length_tokens > 0:
                want.append((b"M", struct.pack("<iI", begin, item.length_tokens) + item.content_hash))
        assert parsed(made.get(chunk, b"")) == want
    assert all(chunk < max(1, total // CHUNK) for chunk in made)


@given(some=st.lists(items, max_size=4), total=st.integers(0, 90), first=st.integers(0, 9))
def test_identities_of_an_extension_are_the_tail_of_the_whole(
    some: list[keys.MultimodalItem], total: int, first: int
) -> None:
    """Whoever extends a chain from chunk n gives each chunk the identity that it has in the whole chain."""
    whole = keys.chunk_identities(total, CHUNK, items=some)
    tail = keys.chunk_identities(total, CHUNK, items=some, first_chunk=first)
    assert tail == [(chunk - first, record) for chunk, record in whole if chunk >= first]


def test_the_order_in_which_items_are_named_does_not_matter() -> None:
    """Engines list items in any order; the identity is one."""
    some = [keys.MultimodalItem(n, 5, bytes([n])) for n in range(10)]
    shuffled = random.Random(7).sample(some, len(some))
    assert keys.chunk_identities(64, CHUNK, items=some) == keys.chunk_identities(64, CHUNK, items=shuffled)


def test_all_bits_of_a_multimodal_hash_count() -> None:
    """Two images whose hashes differ in one bit have different keys, whichever bit it is."""
    base = bytes(32)
    chains = set()
    for bit in range(256):
        other = (int.from_bytes(base, "little") ^ 1 << bit).to_bytes(32, "little")
        identity = keys.chunk_identities(CHUNK, CHUNK, items=[keys.MultimodalItem(0, CHUNK, other)])
        chains.add(keys.token_keys(ROOT, [0] * CHUNK, CHUNK, identity))
    assert len(chains) == 256


def test_identities_that_say_nothing_are_refused() -> None:
    """An adapter without a digest, an item without a hash or a place, and too long records are refused."""
    with pytest.raises(ConfigurationError, match="LoRA digest"):
        keys.lora_record(b"")
    with pytest.raises(ConfigurationError, match="multimodal hash"):
        keys.multimodal_record(0, 1, b"")
    with pytest.raises(ConfigurationError, match="multimodal item"):
        keys.chunk_identities(64, CHUNK, items=[keys.MultimodalItem(0, 0, b"x")])
    with pytest.raises(LimitExceededError, match="identity record bytes: 65536"):
        keys.identity_record(b"L", bytes(65_536))
    with pytest.raises(ConfigurationError, match="identity tag"):
        keys.identity_record(b"LL", b"")
