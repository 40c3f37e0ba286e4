"""What every request and answer of the control API is made of."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

KEYS_PER_CHAIN_MAX = 16_384
TOKENS_PER_CHAIN_MAX = 1_048_576
SALT_CHARACTERS_MAX = 1_024
CHUNK_TOKENS_MAX = 65_536
HEX_KEY_PATTERN = r"^[0-9a-fA-F]{64}$"
HEX_START_PATTERN = r"^[0-9a-fA-F]{4,64}$"

HexKey = Annotated[str, StringConstraints(pattern=HEX_KEY_PATTERN)]
"""A SHA-256 as 64 hexadecimal digits."""
HexStart = Annotated[str, StringConstraints(pattern=HEX_START_PATTERN)]
"""The first digits of one, at least 4."""


class Model(BaseModel):
    """Unknown fields are errors: a misspelt field must never be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def exactly_one(first: str, first_is: dict[str, Any], second: str, second_is: dict[str, Any]) -> ConfigDict:
    """For the OpenAPI document: one of two fields is given, the other is left out or says nothing."""
    nothing: dict[str, Any] = {"enum": [None, False]}

    def only(field: str, given: dict[str, Any], other: str) -> dict[str, Any]:
        return {"required": [field], "properties": {field: given, other: nothing}}

    return ConfigDict(json_schema_extra={"oneOf": [only(first, first_is, second), only(second, second_is, first)]})


class Chain(Model):
    """The chunks of one text. Give ``keys``, or ``tokens`` with the salt they were cached under."""

    model_config = exactly_one("keys", {"type": "array"}, "tokens", {"type": "array"})

    fingerprint: HexStart = Field(
        description="Fingerprint of the engine's model and layout, as /v1/stats lists it, or its first digits."
    )
    keys: Annotated[list[HexKey], Field(min_length=1, max_length=KEYS_PER_CHAIN_MAX)] | None = Field(
        default=None, description="Token keys of consecutive chunks, from the first one on."
    )
    tokens: (
        Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=TOKENS_PER_CHAIN_MAX)]
        | None
    ) = Field(default=None, description="Token ids, from the first one on; only whole chunks count.")
    salt: str = Field(
        default="", max_length=SALT_CHARACTERS_MAX, description="cache_salt of the tenant; with tokens only."
    )
    chunk_tokens: int = Field(default=256, ge=1, le=CHUNK_TOKENS_MAX, description="Tokens in a chunk of this engine.")

    @model_validator(mode="after")
    def _keys_or_tokens(self) -> Self:
        if (self.keys is None) == (self.tokens is None):
            raise ValueError("give exactly one of 'keys' and 'tokens'")
        return self
