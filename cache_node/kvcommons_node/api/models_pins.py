"""Requests and answers about pins."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from kvcommons_node.api.base import Chain, Model, exactly_one

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
PIN_SECONDS_MAX = 30 * 86_400
PINS_PER_PAGE_MAX = 1_000

PinName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Letters, digits and ._:- , at most 128, a letter or digit first."""


class PinRequest(Chain):
    """Chunks that eviction is to leave alone for a while: those leading chunks of the chain that are here."""

    name: PinName | None = Field(
        default=None,
        description="What to call it. A pin of this name is replaced. Without one, a name made of the chunks: asking twice pins once.",
    )
    ttl_seconds: int = Field(default=3_600, ge=1, le=PIN_SECONDS_MAX, description="It ends by itself after this long.")


class PinEntry(Model):
    """One pin."""

    name: str
    fingerprint: str = Field(description="64 hexadecimal digits.")
    chunks: int = Field(description="Leading chunks that it holds.")
    bytes: int = Field(description="Of the arena; a chunk that several pins hold is in each of them.")
    age_seconds: float
    ttl_seconds: float = Field(description="What is left of its time.")


class PinAnswer(Model):
    """What is pinned now."""

    pin: PinEntry
    asked_chunks: int = Field(description="Whole chunks of the chain that was given.")
    replaced: bool = Field(description="A pin of this name was there before.")
    pinned_bytes: int = Field(description="By all pins, each chunk counted once.")
    pinned_bytes_max: int = Field(description="The node's limit.")


class UnpinRequest(Model):
    """Which pins to end: one by name, or all."""

    model_config = exactly_one("name", {"type": "string"}, "all", {"const": True})

    name: PinName | None = Field(default=None, description="The pin to end.")
    all: bool = Field(default=False, description="End every pin.")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.all == (self.name is not None):
            raise ValueError("give exactly one of 'name' and 'all': true")
        return self


class UnpinAnswer(Model):
    """What ended. Ending what is not there is no error: the answer says 0."""

    pins: int = Field(description="Pins that were ended.")
    chunks: int = Field(description="Chunks that no pin holds any more; eviction may take them.")


class PinsQuery(Model):
    """Which page of the pins."""

    after: Annotated[str, Field(max_length=128)] = Field(
        default="", description="Begin behind this name: `next` of the page before."
    )
    limit: int = Field(default=100, ge=1, le=PINS_PER_PAGE_MAX, description="Pins on a page.")


class PinsAnswer(Model):
    """One page of the pins, by name."""

    pins: list[PinEntry]
    next: str = Field(description="Give this as `after` for the next page; empty at the end.")
    total: int
    pinned_bytes: int = Field(description="By all pins, each chunk counted once.")
    pinned_bytes_max: int = Field(description="The node's limit.")
