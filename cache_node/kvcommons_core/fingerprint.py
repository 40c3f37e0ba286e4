"""The fingerprint: SHA-256 of everything that must agree for KV bytes to be interchangeable.

Every field is required. What is not known exactly is an error at start-up, because a wrong guess would serve one model's KV to another.
Standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, TypeAlias

from kvcommons_core.errors import IdentityError

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

SCHEMA_VERSION: Final = 1
VAGUE_NAMES: Final = frozenset({"", "auto", "unknown", "default", "main", "master", "latest", "head"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroup:
    """One kind of KV in a model: its layers, and the shape of what a token leaves in each. MLA has one head."""

    kind: str
    """"full", "sliding_window", "mla", "mamba", or the engine's own name for it."""
    layers: tuple[int, ...]
    kv_heads: int
    head_size: int
    block_tokens: int
    window_tokens: int
    """0 where attention sees everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """All that KV bytes depend on, besides tokens, tenant and adapters. No field has a default: unknown is an error."""

    weights: str
    """"sha256:<hex>" (weights.weights_digest) or "revision:<40 hex>"; a name, a tag or a branch is refused."""
    generation: str
    """"0" as loaded; a fresh random word once weights were replaced in place (`next_generation`)."""
    compute_dtype: str
    """What the layers compute in, resolved: "float32", "bfloat16", never "auto"."""
    weight_quantization: str
    """"none", or the scheme as applied at load."""
    kv_dtype: str
    """What lies in the cache, resolved: "bfloat16", "fp8_e4m3"."""
    kv_quantization: str
    """"none", or the scheme with where its scales come from."""
    groups: tuple[KvGroup, ...]
    attention: str
    """The backend's variant as far as it changes the bytes or their order."""
    chunk_tokens: int
    rope: Mapping[str, Json]
    """All RoPE parameters, scaling included; {"rope_type": "none"} for a model without."""
    context_parallel: int
    """Ranks that a sequence is spread over; 1 for none."""
    context_parallel_interleave: int
    """Tokens in a row on one of those ranks; 1 for none."""
    engine_family: str
    """"vllm", "sglang"."""
    layout: str
    """Name of the order of bytes in a slot."""
    layout_version: int

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_known(field.name, getattr(self, field.name))
        _check_weights(self.weights)
        if not self.groups:
            raise IdentityError("groups", self.groups, "describe each group of KV layers")
        for name, low in (
            ("chunk_tokens", 1),
            ("context_parallel", 1),
            ("context_parallel_interleave", 1),
            ("layout_version", 1),
        ):
            if getattr(self, name) < low:
                raise IdentityError(name, getattr(self, name), f"give at least {low}")
        for index, group in enumerate(self.groups):
            _check_group(f"groups[{index}]", group, self.chunk_tokens)

    def canonical_json(self) -> bytes:
        """Sorted keys, no spaces, ASCII; a number that is not integral stands as the hex of its IEEE 754 bits."""
        document = {"schema": SCHEMA_VERSION, "byte_order": "little"} | _plain(self)
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode(
            "ascii"
        )

    def fingerprint(self) -> bytes:
        """32 bytes."""
        return hashlib.sha256(self.canonical_json()).digest()

    def next_generation(self) -> ModelIdentity:
        """This identity after its weights were replaced in place: random, since what is in memory now is no file's content."""
        return replace(self, generation=secrets.token_hex(16))


def explain_difference(ours: ModelIdentity, theirs: ModelIdentity) -> list[str]:
    """The fields in which two identities differ, each with both values: why two engines do not share."""
    mine, other = _plain(ours), _plain(theirs)
    return [f"{name}: {mine[name]!r} here, {other[name]!r} there" for name in mine if mine[name] != other[name]]


def _check_known(name: str, value: object) -> None:
    """None, vague words and numbers that are no numbers have no place in an identity, however deep."""
    if value is None:
        raise IdentityError(name, value, "this must be known before anything is cached; read it from the loaded model")
    if isinstance(value, str):
        if value.strip().lower() in VAGUE_NAMES:
            raise IdentityError(name, value, "resolve it to what is really in use")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise IdentityError(name, value, "give a finite number")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise IdentityError(name, key, "name parameters by text")
            # A model's own words and nulls are its configuration: they are kept as they are.
            if not isinstance(item, str) and item is not None:
                _check_known(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_known(f"{name}[{index}]", item)
    elif not isinstance(value, bool | int | KvGroup):
        raise IdentityError(name, value, "give text, a number, a list or a mapping")


def _check_weights(weights: str) -> None:
    kind, _, digest = weights.partition(":")
    expected = {"sha256": 64, "revision": 40}.get(kind)
    if expected is None or len(digest) != expected or set(digest) - set("0123456789abcdef"):
        raise IdentityError(
            "weights",
            weights,
            'a name or a branch is not identity: give "sha256:<64 hex>" of the files or "revision:<40 hex>" of a hub',
        )


def _check_group(name: str, group: KvGroup, chunk_tokens: int) -> None:
    for field in fields(group):
        _check_known(f"{name}.{field.name}", getattr(group, field.name))
    if not group.layers:
        raise IdentityError(f"{name}.layers", group.layers, "name the group's layers")
    for number in ("kv_heads", "head_size", "block_tokens"):
        if getattr(group, number) < 1:
            raise IdentityError(f"{name}.{number}", getattr(group, number), "give at least 1")
    if group.window_tokens < 0:
        raise IdentityError(f"{name}.window_tokens", group.window_tokens, "give 0 for none")
    if chunk_tokens % group.block_tokens and group.block_tokens % chunk_tokens:
        raise IdentityError(
            f"{name}.block_tokens",
            group.block_tokens,
            f"chunk_tokens ({chunk_tokens}) must be a multiple of the engine's block",
        )


def _plain(value: ModelIdentity | KvGroup) -> dict[str, Json]:
    return {field.name: _canonical(getattr(value, field.name)) for field in fields(value)}


def _canonical(value: object) -> Json:
    if isinstance(value, KvGroup):
        return _plain(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else "f64:" + struct.pack(">d", value).hex()
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    raise IdentityError("identity", value, "give text, a number, a list or a mapping")
