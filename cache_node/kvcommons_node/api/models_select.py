"""Requests and answers about some of the chunks: where they are, and forgetting them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from kvcommons_node.api.base import (
    CHUNK_TOKENS_MAX,
    KEYS_PER_CHAIN_MAX,
    SALT_CHARACTERS_MAX,
    TOKENS_PER_CHAIN_MAX,
    Chain,
    HexKey,
    HexStart,
    Model,
)

RUNS_MAX = 1_024
PLACES_MAX = 8
AGE_SECONDS_MAX = 10 * 365 * 86_400
MODEL_CHARACTERS_MAX = 256

PLACE_PATTERN = r"^[a-z][a-z0-9_-]{0,31}$"
PlaceName = Annotated[str, StringConstraints(pattern=PLACE_PATTERN)]
"""memory, or the name of a tier as /v1/stats lists it."""


def check_named_once(fingerprint: object, model: object, keys: object, tokens: object) -> None:
    """
    :raises ValueError: where one thing is named twice, or chunks of no engine; each is None where it is not named.
    """
    if fingerprint is not None and model is not None:
        raise ValueError("give at most one of 'fingerprint' and 'model'")
    if keys is not None and tokens is not None:
        raise ValueError("give at most one of 'keys' and 'tokens'")
    if (keys is not None or tokens is not None) and fingerprint is None:
        raise ValueError("'keys' and 'tokens' want a 'fingerprint'")


class LookupRequest(Chain):
    """Where the chunks of a chain are."""

    nodes: bool = Field(
        default=False,
        description="Ask the index, too, which members of the pool hold each chunk; of the first 4,096 chunks.",
    )
    engines: bool = Field(
        default=False, description="The engines' own caches, too: `limits` says what each of them can't tell."
    )


class NodePlace(Model):
    """A member of the pool that holds a chunk, as the index says: a hint."""

    node: str
    tier: str = Field(description="engine, memory, disk or peer.")


class ChunkRun(Model):
    """Chunks one after another that are in the same places."""

    first: int = Field(description="Number of the first chunk, from 0.")
    chunks: int
    places: list[str] = Field(description="On this node: memory and tiers; empty for nowhere.")
    nodes: list[NodePlace] = Field(default=[], description="In the index, where it was asked.")


class LookupAnswer(Model):
    """Where the chunks of a chain are."""

    chunks: int = Field(description="Whole chunks that were asked for.")
    hit_chunks: int = Field(description="Leading chunks that are in memory: what an engine is served at once.")
    hit_tokens: int = Field(description="The same in tokens.")
    here_chunks: int = Field(description="Leading chunks that are in memory or on a tier of this node.")
    places: dict[str, int] = Field(description="How many of all of them are in each place of this node.")
    runs: list[ChunkRun] = Field(description="Where each is; chunks with the same places are one run.")
    runs_left: int = Field(default=0, description="Runs beyond the 1,024 that are told.")
    limits: list[str] = Field(default=[], description="What could not be said, and why.")


def _null(*names: str) -> dict[str, Any]:
    return {name: {"type": "null"} for name in names}


NOT_ALL = {"enum": [None, False]}
STRING, ARRAY, INTEGER = {"type": "string"}, {"type": "array"}, {"type": "integer"}


def _target(needs: dict[str, dict[str, Any]], without: tuple[str, ...]) -> dict[str, Any]:
    return {"required": list(needs), "properties": {"all": NOT_ALL, **needs, **_null(*without)}}


class ClearRequest(Model):
    """What to forget. What is given is combined: chunks that agree with all of it go, and what follows them in their chains."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["all"],
                    "properties": {
                        "all": {"const": True},
                        **_null("fingerprint", "model", "salt", "keys", "tokens", "older_than_seconds"),
                    },
                },
                _target({"fingerprint": STRING}, ("model", "keys")),
                _target({"fingerprint": STRING, "keys": ARRAY}, ("model", "tokens")),
                _target({"model": STRING}, ("fingerprint", "keys", "tokens")),
                _target({"salt": STRING}, ("fingerprint", "model", "keys", "tokens")),
                _target({"older_than_seconds": INTEGER}, ("fingerprint", "model", "salt", "keys", "tokens")),
            ]
        }
    )

    all: bool = Field(default=False, description="Every chunk; with `tiers` at most.")
    fingerprint: HexStart | None = Field(
        default=None, description="Chunks of this fingerprint; its first digits are enough."
    )
    model: Annotated[str, Field(min_length=1, max_length=MODEL_CHARACTERS_MAX)] | None = Field(
        default=None, description="Chunks of the engines that serve this model: as they call it in their reports."
    )
    salt: Annotated[str, Field(max_length=SALT_CHARACTERS_MAX)] | None = Field(
        default=None, description="Chunks of the tenant with this cache_salt; an empty one: those of no tenant."
    )
    keys: Annotated[list[HexKey], Field(min_length=1, max_length=KEYS_PER_CHAIN_MAX)] | None = Field(
        default=None, description="These chunks, with a fingerprint."
    )
    tokens: (
        Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=TOKENS_PER_CHAIN_MAX)]
        | None
    ) = Field(default=None, description="The whole chunks of this text, with a fingerprint and the salt.")
    chunk_tokens: int = Field(
        default=256, ge=1, le=CHUNK_TOKENS_MAX, description="Tokens in a chunk of this engine; with tokens."
    )
    older_than_seconds: Annotated[int, Field(ge=1, le=AGE_SECONDS_MAX)] | None = Field(
        default=None,
        description="Chunks that were stored in memory longer ago. Of what is on a tier alone no age is known.",
    )
    tiers: list[PlaceName] = Field(
        default=[], max_length=PLACES_MAX, description="Only there: memory, disk, ...; everywhere when empty."
    )
    engines: bool = Field(
        default=False,
        description="The engines' own prefix caches, too: each as a whole, whatever else is named, where it allows that.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        filters = (self.fingerprint, self.model, self.salt, self.keys, self.tokens, self.older_than_seconds)
        given = any(one is not None for one in filters)
        if self.all == given:
            raise ValueError(
                "give exactly one of 'all': true and what is meant: fingerprint, model, salt, older_than_seconds"
            )
        check_named_once(self.fingerprint, self.model, self.keys, self.tokens)
        return self


class EngineResult(Model):
    """What came of it in an engine's own cache."""

    engine: str
    outcome: Literal["cleared", "not_supported", "failed"]
    detail: str = Field(default="", description="Why not, and what to do; or what else went.")


class ClearAnswer(Model):
    """What was forgotten. Chunks that a reader holds are invisible at once and freed when the reader is done."""

    chunks: int = Field(description="Chunks removed from memory.")
    tier_shards: dict[str, int] = Field(
        default={}, description="Removed from each tier; a chunk has one shard for each rank of its engine."
    )
    engines: list[EngineResult] = Field(default=[], description="Their own caches, where they were asked.")
    pins: int = Field(default=0, description="Pins that ended with them.")
    epoch: int | None = Field(description="The node's epoch in the index afterwards; null while it has joined none.")
    limits: list[str] = Field(default=[], description="What could not be done, and why.")
