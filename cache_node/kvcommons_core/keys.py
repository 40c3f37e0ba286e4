"""Token keys, segment keys and what their identity bytes hold.

    root          = SHA256(fingerprint || HMAC-SHA256(secret, salt))
    token key i   = SHA256(token key i-1, or root || tokens as u32 little-endian || identity bytes)
    segment key   = SHA256("kvcommons.segment.v1" || segment root || tokens as u32 little-endian)
    segment root  = root, or with an adapter SHA256("kvcommons.segment-identity.v1" || root || its identity record)

Identity bytes are records, one after another: tag u8, length u16 little-endian, payload. They stand behind a fixed number of tokens, so
no two (tokens, identity) pairs give the same bytes. Everything here needs the standard library alone; `_native` makes it fast.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from kvcommons_core import limits
from kvcommons_core.errors import ConfigurationError, LimitExceededError

try:
    from kvcommons_core import _native
except ImportError:  # a pure wheel (operator, router): the reference below serves
    HAVE_NATIVE = False
else:
    HAVE_NATIVE = True

Tokens: TypeAlias = object
"""A list of ints in [0, 2**32), or a C-contiguous buffer of 4- or 8-byte integers (array, numpy, a torch CPU tensor's)."""

Identities: TypeAlias = Sequence[tuple[int, bytes]]
"""(chunk index, identity bytes), ascending; a chunk that is not named has none, and what is named beyond the whole chunks has no effect."""

TAG_LORA: Final = b"L"
TAG_MULTIMODAL: Final = b"M"
SEGMENT_DOMAIN: Final = b"kvcommons.segment.v1"
SEGMENT_IDENTITY_DOMAIN: Final = b"kvcommons.segment-identity.v1"


def namespace_root(fingerprint: bytes, secret: bytes, salt: str = "") -> bytes:
    """The parent of every first chunk: one for each (fingerprint, tenant salt), unguessable without the pool's secret."""
    _check_key("fingerprint", fingerprint)
    if len(secret) < 16:
        raise ConfigurationError("namespace secret", f"{len(secret)} bytes", "give at least 16 random bytes")
    return hashlib.sha256(fingerprint + hmac.digest(secret, salt.encode("utf-8", "surrogatepass"), "sha256")).digest()


def segment_root(root: bytes, identity: bytes = b"") -> bytes:
    """The namespace of chunks that are named without their prefix; `identity` is what holds for all (the LoRA record)."""
    _check_key("root", root)
    return hashlib.sha256(SEGMENT_IDENTITY_DOMAIN + root + identity).digest() if identity else root


def token_keys(
    root: bytes, tokens: Tokens, chunk_tokens: int, identities: Identities = (), parent: bytes | None = None
) -> bytes:
    """Keys of every whole chunk of `tokens`, 32 bytes each, concatenated.

    :param parent: key of the chunk before the first one, to extend a chain; None starts at the root.
    :raises ValueError: if an argument is out of its range, naming it and the remedy.
    """
    if HAVE_NATIVE:
        return _native.chain_keys(root, tokens, chunk_tokens, list(identities), parent)
    return token_keys_reference(root, tokens, chunk_tokens, identities, parent)


def segment_keys(root: bytes, tokens: Tokens, chunk_tokens: int) -> bytes:
    """Keys of every whole chunk by itself, under a root made by :func:`segment_root`."""
    if HAVE_NATIVE:
        return _native.segment_keys(root, tokens, chunk_tokens)
    return segment_keys_reference(root, tokens, chunk_tokens)


def token_keys_reference(
    root: bytes, tokens: Tokens, chunk_tokens: int, identities: Identities = (), parent: bytes | None = None
) -> bytes:
    """The same in plain Python: what the native one is tested against, and what serves where there is none."""
    _check_key("root", root)
    if parent is not None:
        _check_key("parent", parent)
    raw = _token_bytes(tokens, chunk_tokens)
    step = chunk_tokens * 4
    chunks = len(raw) // step
    by_chunk = _identity_map(identities)
    previous = root if parent is None else parent
    keys = bytearray()
    for index in range(chunks):
        previous = hashlib.sha256(previous + raw[index * step : (index + 1) * step] + by_chunk.get(index, b"")).digest()
        keys += previous
    return bytes(keys)


def segment_keys_reference(root: bytes, tokens: Tokens, chunk_tokens: int) -> bytes:
    """Segment keys in plain Python."""
    _check_key("root", root)
    raw = _token_bytes(tokens, chunk_tokens)
    step = chunk_tokens * 4
    return b"".join(
        hashlib.sha256(SEGMENT_DOMAIN + root + raw[begin : begin + step]).digest()
        for begin in range(0, len(raw) - step + 1, step)
    )


def split_keys(keys: bytes) -> list[bytes]:
    """Packed keys as a list of 32-byte strings."""
    if len(keys) % limits.KEY_BYTES:
        raise ConfigurationError("keys", f"{len(keys)} bytes", f"give a multiple of {limits.KEY_BYTES} bytes")
    return [keys[i : i + limits.KEY_BYTES] for i in range(0, len(keys), limits.KEY_BYTES)]


# identity ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MultimodalItem:
    """One image, sound or video of a request: which placeholder tokens stand for it, and the hash of what it is."""

    offset_tokens: int
    length_tokens: int
    content_hash: bytes


def identity_record(tag: bytes, payload: bytes) -> bytes:
    """One record: tag, length, payload."""
    if len(tag) != 1:
        raise ConfigurationError("identity tag", tag, "give exactly one byte")
    if len(payload) > limits.IDENTITY_RECORD_BYTES_MAX:
        raise LimitExceededError(
            "identity record bytes", len(payload), limits.IDENTITY_RECORD_BYTES_MAX, "hash the payload first"
        )
    return tag + struct.pack("<H", len(payload)) + payload


def lora_record(digest: bytes) -> bytes:
    """The LoRA adapter in use, by digest of its content (see fingerprint.lora_digest); its name says nothing."""
    if not digest:
        raise ConfigurationError(
            "LoRA digest", digest, "give the digest of the adapter's content; leave the record out for none"
        )
    return identity_record(TAG_LORA, digest)


def multimodal_record(offset_in_chunk: int, length_tokens: int, content_hash: bytes) -> bytes:
    """One item that overlaps a chunk; the offset is negative where the item began in an earlier chunk."""
    if not 0 < len(content_hash) <= limits.IDENTITY_HASH_BYTES_MAX:
        raise ConfigurationError(
            "multimodal hash",
            content_hash,
            f"give the hash of the item's content, 1 to {limits.IDENTITY_HASH_BYTES_MAX} bytes",
        )
    return identity_record(TAG_MULTIMODAL, struct.pack("<iI", offset_in_chunk, length_tokens) + content_hash)


def chunk_identities(
    tokens_total: int,
    chunk_tokens: int,
    *,
    lora: bytes | None = None,
    items: Sequence[MultimodalItem] = (),
    first_chunk: int = 0,
) -> list[tuple[int, bytes]]:
    """Identity bytes of the whole chunks from `first_chunk` on, numbered from it, as `token_keys` wants them.

    The LoRA record stands in chunk 0 alone (the chain carries it on); an item stands in every chunk that it overlaps.
    """
    chunks = tokens_total // chunk_tokens
    records: dict[int, bytes] = {}
    if lora is not None and chunks > 0 and first_chunk == 0:
        records[0] = lora_record(lora)
    for item in sorted(items, key=lambda i: (i.offset_tokens, i.length_tokens, i.content_hash)):
        if item.length_tokens <= 0 or item.offset_tokens < 0:
            raise ConfigurationError(
                "multimodal item", item, "give an offset from 0 and a length of at least one token"
            )
        first = max(item.offset_tokens // chunk_tokens, first_chunk)
        last = min((item.offset_tokens + item.length_tokens - 1) // chunk_tokens, chunks - 1)
        for chunk in range(first, last + 1):
            record = multimodal_record(item.offset_tokens - chunk * chunk_tokens, item.length_tokens, item.content_hash)
            records[chunk - first_chunk] = records.get(chunk - first_chunk, b"") + record
    return sorted(records.items())


# helpers -------------------------------------------------------------------------------------------------------------


def _check_key(name: str, value: bytes) -> None:
    if len(value) != limits.KEY_BYTES:
        raise ConfigurationError(name, f"{len(value)} bytes", f"give exactly {limits.KEY_BYTES} bytes")


def _identity_map(identities: Identities) -> dict[int, bytes]:
    result: dict[int, bytes] = {}
    previous = -1
    for index, record in identities:
        if index <= previous:
            raise ConfigurationError("identities", index, "give each chunk once, in ascending order")
        previous = index
        result[index] = bytes(record)
    return result


def _token_bytes(tokens: Tokens, chunk_tokens: int) -> bytes:
    """Little-endian u32 of all tokens, whatever they came in."""
    if not 0 < chunk_tokens <= limits.CHUNK_TOKENS_MAX:
        raise ConfigurationError("chunk_tokens", chunk_tokens, f"give 1 to {limits.CHUNK_TOKENS_MAX}")
    values = tokens if isinstance(tokens, list | tuple) else _buffer_values(tokens)
    try:
        packed = array("I", values)
    except (OverflowError, TypeError) as error:
        raise ConfigurationError("tokens", str(error), "give integers from 0 to 2**32 - 1") from error
    if len(packed) // chunk_tokens > limits.CHUNKS_PER_REQUEST_MAX:
        raise LimitExceededError(
            "chunks",
            len(packed) // chunk_tokens,
            limits.CHUNKS_PER_REQUEST_MAX,
            "use larger chunks or a shorter request",
        )
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _buffer_values(tokens: Tokens) -> list[int]:
    try:
        view = memoryview(tokens)  # type: ignore[arg-type]  # the buffer protocol has no type before 3.12
    except TypeError as error:
        raise ConfigurationError(
            "tokens", type(tokens).__name__, "give a list of integers or a buffer of them"
        ) from error
    if view.format not in set("iIlLqQ") or view.ndim != 1 or not view.c_contiguous:
        raise ConfigurationError(
            "tokens", view.format, "give a contiguous one-dimensional buffer of 4- or 8-byte integers"
        )
    return view.tolist()
