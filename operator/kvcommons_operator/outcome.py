"""What a plan says is to be done. reconcile/ carries it out in this order: finalizer (keep), apply, actions, delete, status and
events, finalizer (drop)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kvcommons_operator.observed import Manifest, Ref
from kvcommons_operator.pod_memory import Memory
from kvcommons_operator.troubles import Puzzle


class Finalizer(StrEnum):
    """What is to become of our finalizer."""

    KEEP = "keep"
    """See that it is there."""
    DROP = "drop"
    """See that it is gone."""


class ActionKind(StrEnum):
    """Steps that are no manifest."""

    FENCE = "fence"
    """Void everything that the member published: POST /v1/fence on any live node of the pool."""
    FLUSH = "flush"
    """Have the member write down what it holds in memory alone, and take nothing new."""
    UNFENCE = "unfence"
    """Let the member back into the index, whose hold has no reason any more."""
    DELETE_POD = "delete-pod"
    """Delete the pod if its uid is still this one (a precondition); its controller makes the next."""
    RESIZE_POD = "resize-pod"
    """Have the kubelet give the cache node's container `memory` while it runs, and merge `annotations`."""
    RESIZE_ARENA = "resize-arena"
    """Have the cache node take `arena_bytes` and keep what fits: POST /v1/resize. Its pod is marked
    with that size before, and `annotations` are merged once the node will do it."""
    ANNOTATE_POD = "annotate-pod"
    """Merge `annotations` into the pod's."""


@dataclass(frozen=True, kw_only=True)
class PodAction:
    """One step on one pod."""

    kind: ActionKind
    namespace: str
    pod: str
    uid: str
    member: str = ""
    """The member's name in the index, for FENCE and FLUSH."""
    reason: str = ""
    annotations: tuple[tuple[str, str | None], ...] = ()
    """None: away with it."""
    memory: Memory | None = None
    arena_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Event:
    """A Kubernetes Event on the resource; equal ones are told once in a while by who sends them."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that one reconcile does."""

    apply: tuple[Manifest, ...] = ()
    """Server-side, in this order, one field manager, forced. A manifest with metadata.resourceVersion is applied only if
    that is still the live one (409: observe again)."""
    delete: tuple[Ref, ...] = ()
    """In this order; what is gone already is no error. Propagation: background."""
    actions: tuple[PodAction, ...] = ()
    status: dict[str, Any] = field(default_factory=dict)
    """The whole status, applied server-side to the status subresource; empty for none."""
    events: tuple[Event, ...] = ()
    finalizer: Finalizer = Finalizer.KEEP
    puzzles: tuple[Puzzle, ...] = ()
    """What does not come forward and does not say why: its Events are read, if that lasts."""
    renew: tuple[Ref, ...] = ()
    """Of `apply`, what somebody was seen to miss: written even where nothing seems to have changed, since it is not watched."""
    requeue_seconds: float | None = None
    """Look again after so long even if nothing happens; None for the slow timer alone."""
