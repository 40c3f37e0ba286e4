"""What every request and answer of the control API is made of."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

KEYS_PER_CHAIN_MAX = 16_384
TOKENS_PER_CHAIN_MAX = 1_048_576
TEXT_CHARACTERS_MAX = 4 << 20
SALT_CHARACTERS_MAX = 1_024
CHUNK_TOKENS_MAX = 65_536
HEX_KEY_PATTERN = r"^[0-9a-fA-F]{64}$"
HEX_START_PATTERN = r"^[0-9a-fA-F]{4,64}$"

HexKey = Annotated[str, StringConstraints(pattern=HEX_KEY_PATTERN)]
"""A SHA-256 as 64 hexadecimal digits."""
HexStart = Annotated[str, StringConstraints(pattern=HEX_START_PATTERN)]
"""The first digits of one, at least 4."""


NodeName = Annotated[str, StringConstraints(min_length=1, max_length=253)]
"""As the index, and `kvcommons stats`, calls a node."""


class Model(BaseModel):
    """Unknown fields are errors: a misspelt field must never be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def exactly_one(first: str, first_is: dict[str, Any], second: str, second_is: dict[str, Any]) -> ConfigDict:
    """For the OpenAPI document: one of two fields is given, the other is left out or says nothing."""
    nothing: dict[str, Any] = {"enum": [None, False]}

    def only(field: str, given: dict[str, Any], other: str) -> dict[str, Any]:
        return {"required": [field], "properties": {field: given, other: nothing}}

    return ConfigDict(json_schema_extra={"oneOf": [only(first, first_is, second), only(second, second_is, first)]})


def exactly_one_of(fields: dict[str, dict[str, Any]]) -> ConfigDict:
    """The same for more than two."""
    branches: list[Any] = [
        {
            "required": [name],
            "properties": {name: given, **{other: {"type": "null"} for other in fields if other != name}},
        }
        for name, given in fields.items()
    ]
    return ConfigDict(json_schema_extra={"oneOf": branches})


class Chain(Model):
    """The chunks of one text. Give ``keys``, or ``tokens`` or ``text`` with the salt they were cached under."""

    model_config = exactly_one_of({"keys": {"type": "array"}, "tokens": {"type": "array"}, "text": {"type": "string"}})

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
    text: Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS_MAX)] | None = Field(
        default=None,
        description="A prompt as for /v1/completions; an engine of this node makes tokens of it (node.engine_urls).",
    )
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="With text: as the engine calls it; its own when left out."
    )
    salt: str = Field(
        default="", max_length=SALT_CHARACTERS_MAX, description="cache_salt of the tenant; with tokens or text only."
    )
    chunk_tokens: int = Field(default=256, ge=1, le=CHUNK_TOKENS_MAX, description="Tokens in a chunk of this engine.")

    @model_validator(mode="after")
    def _keys_or_tokens(self) -> Self:
        if sum(one is not None for one in (self.keys, self.tokens, self.text)) != 1:
            raise ValueError("give exactly one of 'keys', 'tokens' and 'text'")
        return self
