"""Requests and answers about what finished requests reused, and why not more."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kvcommons_node.api.base import Model

REQUEST_ID_CHARACTERS_MAX = 256
REPORTS_PER_PAGE_MAX = 500


class MissedChunks(Model):
    """Chunks of a prompt, one after another, that were not found for one reason."""

    first: int = Field(description="The number of the first in the prompt, from 0.")
    last: int = Field(description="The number of the last.")
    key: str = Field(description="The first one's key, its first 16 hexadecimal digits.")
    why: str = Field(
        description="A word: evicted, cleared, never_stored, other_fingerprint, other_tenant, peer_slow, …"
    )
    explanation: str = Field(description="The same in words.")
    seconds_before: float | None = Field(
        default=None, description="Of evicted and cleared: how long before the report the first of them went."
    )
    lived_seconds: float | None = Field(default=None, description="And how old it was then.")
    peers: list[str] = Field(default=[], description="Nodes that had them, as the index said.")


class RequestReport(Model):
    """What an engine said of one request when it ended."""

    number: int = Field(description="Of this report since the node's start; grows.")
    request_id: str = Field(description="The router's x-request-id where one was sent, else the engine's own.")
    age_seconds: float = Field(description="Since the report.")
    prompt_tokens: int
    own_tokens: int = Field(description="Held by the engine's own prefix cache.")
    commons_tokens: int = Field(description="Loaded from this node.")
    computed_tokens: int
    reason: str = Field(description="Why less than every whole chunk was reused; empty when all was.")
    explanation: str = Field(description="The same in words, with what to do about it.")
    missed: list[MissedChunks] = Field(
        default=[], description="The chunks that the node was asked for and did not have; of a request 64 at most."
    )


class RequestsQuery(Model):
    """Which of the last reports."""

    request: Annotated[str, Field(max_length=REQUEST_ID_CHARACTERS_MAX)] = Field(
        default="", description="Only of this request; all when empty."
    )
    missed: bool = Field(default=False, description="Only those that reused less than they might have.")
    before: int = Field(default=0, ge=0, description="Only older ones: `next` of the page before; 0 for the newest.")
    limit: int = Field(default=50, ge=1, le=REPORTS_PER_PAGE_MAX, description="Reports on a page.")


class RequestsAnswer(Model):
    """Reports, the newest first."""

    requests: list[RequestReport]
    next: int = Field(description="Give this as `before` for the next page; 0 at the end.")
    kept: int = Field(description="Reports that the node remembers; older ones are forgotten.")


class EventsQuery(Model):
    """Which events to send."""

    kinds: Annotated[str, Field(max_length=256)] = Field(
        default="",
        description="committed, freed, moved, request, session_opened, session_closed, job, with commas; all when empty.",
    )


class EventData(Model):
    """The data of one event, by its kind. An event `gap` says that others were lost: what was known is to be asked for anew."""

    fingerprint: str | None = Field(default=None, description="Of committed, freed, session_opened, session_closed.")
    key: str | None = Field(default=None, description="The chunk's, of committed, freed and moved.")
    tier: str | None = Field(default=None, description="Where the chunk is by now; not given: nowhere on this node.")
    age_seconds: float | None = Field(default=None, description="Of freed: since its commit.")
    request_id: str | None = Field(default=None, description="Of request, with the four counts and the reason.")
    prompt_tokens: int | None = None
    own_tokens: int | None = None
    commons_tokens: int | None = None
    computed_tokens: int | None = None
    reason: str | None = None
    job: str | None = Field(default=None, description="Of job, with its kind, its name and its state by now.")
    job_kind: str | None = None
    name: str | None = None
    state: str | None = None
    lost: int | None = Field(default=None, description="Of gap: how many, where that is known.")
