"""Requests and answers about long work: jobs, and what begins one."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from kvcommons_node.api.base import Model, exactly_one
from kvcommons_node.api.models_pins import NAME_PATTERN

JOBS_PER_PAGE_MAX = 500
DOCUMENTS_MAX = 16_384
MESSAGES_MAX = 1_024
AT_ONCE_MAX = 64
MODEL_CHARACTERS_MAX = 256
JOB_PATTERN = r"^[0-9a-f]{16}$"

JobId = Annotated[str, StringConstraints(pattern=JOB_PATTERN)]
"""16 hexadecimal digits, as the answer that began it said."""
JobName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]


class JobProgress(Model):
    """How far a job is."""

    done: int = Field(description="Of what `unit` says.")
    failed: int = 0
    total: int = Field(description="What it will be in the end.")
    unit: str = Field(description="documents, chunks or shards.")
    detail: str = Field(default="", description="In words, what was last wrong or is being waited for.")


class JobEntry(Model):
    """One job."""

    job: str = Field(description="Its id.")
    number: int = Field(description="Grows with each job since the node's start.")
    kind: str = Field(description="prewarm, move, fetch, compress or decompress.")
    name: str = Field(description="As it was given; else made of what was asked.")
    state: JobState
    progress: JobProgress
    error: str = Field(default="", description="Why it failed.")
    result: dict[str, Any] = Field(default={}, description="By kind; of an ended one.")
    age_seconds: float = Field(description="Since it was asked for.")
    running_seconds: float = Field(description="How long it has run, or ran.")


class JobAnswer(Model):
    """The job that was begun, or the one that this call had begun before."""

    job: JobEntry
    created: bool = Field(description="False: a job of this name was there, and nothing was begun.")


class JobsQuery(Model):
    """Which jobs."""

    job: Annotated[str, Field(max_length=16)] = Field(
        default="", description="Only the one of this id; all when empty."
    )
    state: Literal["", "waiting", "running", "done", "failed", "cancelled"] = Field(
        default="", description="Only those in this state; all when empty."
    )
    before: int = Field(default=0, ge=0, description="Only older ones: `next` of the page before; 0 for the newest.")
    limit: int = Field(default=50, ge=1, le=JOBS_PER_PAGE_MAX, description="Jobs on a page.")


class JobsAnswer(Model):
    """Jobs, the newest first. The node remembers ended ones for an hour, 256 at most, and none beyond its own end."""

    jobs: list[JobEntry]
    next: int = Field(description="Give this as `before` for the next page; 0 at the end.")
    kept: int = Field(description="Jobs that the node remembers.")


class CancelRequest(Model):
    """Which job to end."""

    job: JobId


class Document(Model):
    """A text that later requests will begin with."""

    model_config = exactly_one("prompt", {"type": "string"}, "messages", {"type": "array"})

    prompt: Annotated[str, Field(min_length=1)] | None = Field(default=None, description="As for /v1/completions.")
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MESSAGES_MAX)] | None = Field(
        default=None, description="As for /v1/chat/completions."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of 'prompt' and 'messages'")
        return self


class PrewarmRequest(Model):
    """Documents to be sent through an engine once, so that their KV is there before somebody waits for it."""

    model: Annotated[str, Field(min_length=1, max_length=MODEL_CHARACTERS_MAX)] = Field(
        description="As the engine or the router calls it."
    )
    documents: Annotated[list[Document], Field(min_length=1, max_length=DOCUMENTS_MAX)]
    at_once: int = Field(default=4, ge=1, le=AT_ONCE_MAX, description="Requests at one time.")
    name: JobName | None = Field(
        default=None,
        description="A job of this name that waits, runs or is done is answered with, and nothing is begun: a call may be repeated.",
    )
