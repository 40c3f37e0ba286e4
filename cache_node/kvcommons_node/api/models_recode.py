"""Requests that change the form in which a tier keeps chunks."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from kvcommons_node.api.base import (
    CHUNK_TOKENS_MAX,
    KEYS_PER_CHAIN_MAX,
    SALT_CHARACTERS_MAX,
    TOKENS_PER_CHAIN_MAX,
    HexKey,
    HexStart,
    Model,
)
from kvcommons_node.api.models_jobs import MODEL_CHARACTERS_MAX, JobName
from kvcommons_node.api.models_move import REPEATED
from kvcommons_node.api.models_select import ARRAY, STRING, PlaceName, check_named_once

CODEC_PATTERN = r"^(lossless|fp8-e4m3|int8|k16v8|int4|int4:group=(8|16|32|64|128|256))$"
RATE_MAX = 1 << 40


def _branch(needs: dict[str, dict[str, Any]], without: tuple[str, ...]) -> dict[str, Any]:
    return {"required": list(needs), "properties": {**needs, **{name: {"type": "null"} for name in without}}}


class DecompressRequest(Model):
    """Chunks of a tier, all or some, back to the engine's own bytes. What a codec has lost stays lost."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                _branch({}, ("fingerprint", "model", "keys", "tokens")),
                _branch({"fingerprint": STRING}, ("model", "keys")),
                _branch({"fingerprint": STRING, "keys": ARRAY}, ("model", "tokens")),
                _branch({"model": STRING}, ("fingerprint", "keys", "tokens")),
            ]
        }
    )

    fingerprint: HexStart | None = Field(
        default=None, description="Chunks of this fingerprint; its first digits are enough."
    )
    model: Annotated[str, Field(min_length=1, max_length=MODEL_CHARACTERS_MAX)] | None = Field(
        default=None, description="Chunks of the engines that serve this model: as they call it in their reports."
    )
    keys: Annotated[list[HexKey], Field(min_length=1, max_length=KEYS_PER_CHAIN_MAX)] | None = Field(
        default=None, description="These chunks, with a fingerprint."
    )
    tokens: (
        Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=TOKENS_PER_CHAIN_MAX)]
        | None
    ) = Field(default=None, description="The whole chunks of this text, with a fingerprint and the salt.")
    salt: str = Field(default="", max_length=SALT_CHARACTERS_MAX, description="cache_salt of the tenant; with tokens.")
    chunk_tokens: int = Field(
        default=256, ge=1, le=CHUNK_TOKENS_MAX, description="Tokens in a chunk of this engine; with tokens."
    )
    tier: PlaceName | None = Field(default=None, description="As /v1/stats lists it; the first that has codecs.")
    from_memory: bool = Field(
        default=True, description="Also what only memory holds: written to the tier first, in the tier's own form."
    )
    bytes_per_second_max: int = Field(
        default=0, ge=0, le=RATE_MAX, description="Of memory's bytes; 0: as fast as the tier and one thread are."
    )
    name: JobName | None = Field(default=None, description=REPEATED)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        check_named_once(self.fingerprint, self.model, self.keys, self.tokens)
        return self


class CompressRequest(DecompressRequest):
    """Chunks of a tier, all or some, into a smaller form."""

    codec: Annotated[str, StringConstraints(pattern=CODEC_PATTERN)] = Field(
        description="lossless; or the tier's own codec with loss, where the node allows that (docs: codecs)."
    )
