"""Settings of the tiers behind a node's memory: `node.tiers`, a list of tables, each with its `type`."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from kvcommons_core.codecs import parse_codec
from kvcommons_core.errors import ConfigurationError
from kvcommons_core.settings_remote import RedisTier, S3Tier
from kvcommons_core.settings_values import Bytes, Section, Words, format_bytes

DEVICES_MAX: Final = 64
SEGMENTS_MIN: Final = 4
NO_CODEC: Final = "none"


class DiskTier(Section):
    """Local disks: what memory lets go of is read from there instead of being computed again."""

    type: Literal["disk"]
    """What kind of tier this is."""
    paths: Words = Field(min_length=1, max_length=DEVICES_MAX)
    """Folders, one a device; each gets one file of capacity_bytes."""
    capacity_bytes: Bytes = Field(ge=8 << 20)
    """Of each device: a hard limit, and taken at the first start."""
    segment_bytes: Bytes = Field(default=128 << 20, ge=1 << 20, le=1 << 30)
    """What is written and reused at one time; a device whose segments had another size starts empty."""
    engine: Literal["auto", "io_uring", "threads"] = "auto"
    """How the devices are driven; auto takes io_uring where the kernel allows it, and the log names which."""
    buffered: bool = False
    """Goes on through the page cache where the file system has no O_DIRECT; else that is an error at start."""
    wear_bytes_per_day: Bytes = Field(default=0, ge=0)
    """Written to each device within a day at most; 0 for no limit."""
    read_bytes_per_second_max: Bytes = Field(default=0, ge=0)
    """From each device; 0 for no limit."""
    write_bytes_per_second_max: Bytes = Field(default=0, ge=0)
    """To each device; 0 for no limit."""

    codec: str = "none"
    """Makes what is written smaller: none, lossless, fp8-e4m3, int8, int4 (int4:group=64) or k16v8 (docs/codecs.md)."""
    lossy: Literal["deny", "allow"] = "deny"
    """Whether KV that a codec changed may answer; without it only codec none and lossless are taken."""

    @field_validator("codec")
    @classmethod
    def _known_codec(cls, value: str) -> str:
        if value == NO_CODEC:
            return value
        try:
            return str(parse_codec(value))
        except ConfigurationError as error:
            raise ValueError(f"{error.remedy}, or none") from error

    @model_validator(mode="after")
    def _loss_is_allowed(self) -> Self:
        if self.codec != NO_CODEC and parse_codec(self.codec).codec.lossy and self.lossy != "allow":
            raise ValueError(
                f"codec {self.codec} gives back other numbers than the engine computed: set lossy to allow, or codec to "
                "lossless"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        least = SEGMENTS_MIN * self.segment_bytes
        if self.capacity_bytes < least:
            raise ValueError(
                f"capacity_bytes ({format_bytes(self.capacity_bytes)}) must be at least {SEGMENTS_MIN} segments "
                f"({format_bytes(least)}): give more, or smaller segment_bytes"
            )
        if len(set(self.paths)) != len(self.paths):
            raise ValueError("each of paths must be another folder")
        return self


Tier = Annotated[DiskTier | RedisTier | S3Tier, Field(discriminator="type")]
TIERS_MAX: Final = 3


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, dict) else value


def _in_order(tiers: tuple[DiskTier | RedisTier | S3Tier, ...]) -> tuple[DiskTier | RedisTier | S3Tier, ...]:
    types = [tier.type for tier in tiers]
    if len(set(types)) != len(types):
        raise ValueError("give one tier of each type at most")
    if "disk" in types[1:]:
        raise ValueError("put the disk first: it is nearer than what is shared with other nodes")
    return tiers


Tiers = Annotated[
    tuple[Tier, ...], BeforeValidator(_one_or_many), Field(max_length=TIERS_MAX), AfterValidator(_in_order)
]
"""In the order in which they are asked."""
