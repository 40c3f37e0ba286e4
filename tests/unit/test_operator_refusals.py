"""What a resource says where the API server refuses one of its children: the truth, and the same truth at every look."""

from __future__ import annotations

from typing import Any

import operator_examples as examples
from kvcommons_operator.kube.errors import RejectedError
from kvcommons_operator.observed import Ref
from kvcommons_operator.outcome import Event, Plan
from kvcommons_operator.reconcile.act import Refused
from kvcommons_operator.reconcile.controller import with_refusals, without_hopes

REFUSED = [Refused(Ref("v1", "Service", "llm", "chat"), RejectedError(422, "Invalid", "no such port", "PATCH x"))]


def condition(kind: str, status: str, since: str, reason: str = "Ready") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "observedGeneration": 1,
        "lastTransitionTime": since,
        "reason": reason,
        "message": "well",
    }


def test_what_is_refused_again_has_not_changed_again() -> None:
    """The condition keeps the time since when it does not hold: a status that only ages is not written every half minute."""
    resource = examples.deployment()
    resource["status"] = {"conditions": [condition("Ready", "False", examples.NOW, "ApplyRefused")]}
    hoped = {"conditions": [condition("Ready", "True", examples.LATER)]}
    told = with_refusals(hoped, REFUSED, resource)["conditions"][0]
    assert (told["status"], told["reason"]) == ("False", "ApplyRefused")
    assert told["lastTransitionTime"] == examples.NOW
    assert "Service llm/chat is refused: no such port" in told["message"]


def test_what_has_just_been_refused_has_changed_now() -> None:
    """A resource that was ready has not been without it since it became ready."""
    resource = examples.deployment()
    resource["status"] = {"conditions": [condition("Ready", "True", examples.NOW)]}
    told = with_refusals({"conditions": [condition("Ready", "True", examples.NOW)]}, REFUSED, resource)["conditions"][0]
    assert told["status"] == "False"
    assert told["lastTransitionTime"] != examples.NOW


def test_no_event_tells_what_was_only_hoped_for() -> None:
    """That the resource is ready is not told where its condition says that it is not."""
    events = tuple(Event(type="Normal", reason="x", message=f"{kind}: well") for kind in ("Ready", "Available"))
    assert [event.message for event in without_hopes(Plan(events=events)).events] == ["Available: well"]
