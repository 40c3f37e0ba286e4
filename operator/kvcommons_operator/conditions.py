"""Conditions: computed from what is observed, never from what was hoped for. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from kvcommons_operator.observed import Manifest, Pod
from kvcommons_operator.outcome import Event
from kvcommons_operator.troubles import Trouble

MESSAGE_CHARACTERS_MAX: Final = 1_024
LISTED_MAX: Final = 3
"""Of things that are not well, so many are named in a message."""

ACCEPTED: Final = "Accepted"
RESOLVED_REFS: Final = "ResolvedRefs"
PROGRESSING: Final = "Progressing"
AVAILABLE: Final = "Available"
READY: Final = "Ready"
INDEX_CONSISTENT: Final = "IndexConsistent"
CONNECTOR_LOADED: Final = "ConnectorLoaded"
TIERS_HEALTHY: Final = "TiersHealthy"
DISAGGREGATED: Final = "Disaggregated"

STEPS: Final = frozenset({PROGRESSING, AVAILABLE, READY})
"""What goes through many reasons while something comes up: each is in the condition while it holds."""
COMPLETE: Final = "Complete"
STUCK_REASONS: Final = frozenset({"RolloutStuck", "PoolInUse"})


class Verdict(StrEnum):
    """A condition's status."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One thing that is so, is not so, or is not known."""

    type: str
    status: Verdict
    reason: str
    message: str

    @property
    def holds(self) -> bool:
        """It is so."""
        return self.status == Verdict.TRUE


def yes(kind: str, reason: str, message: str) -> Condition:
    """It is so."""
    return Condition(type=kind, status=Verdict.TRUE, reason=reason, message=message)


def no(kind: str, reason: str, message: str) -> Condition:
    """It is not so."""
    return Condition(type=kind, status=Verdict.FALSE, reason=reason, message=message)


def unknown(kind: str, reason: str, message: str) -> Condition:
    """Nobody could say."""
    return Condition(type=kind, status=Verdict.UNKNOWN, reason=reason, message=message)


def rendered(found: Iterable[Condition], resource: Manifest, now: str) -> list[dict[str, Any]]:
    """The list for the status: a condition keeps the time of its last change for as long as its status stays."""
    before = previous(resource)
    generation = resource["metadata"].get("generation", 0)
    result = []
    for condition in found:
        old = before.get(condition.type, {})
        same = old.get("status") == condition.status.value
        entry = {
            "type": condition.type,
            "status": condition.status.value,
            "observedGeneration": generation,
            "lastTransitionTime": old.get("lastTransitionTime", now) if same else now,
            "reason": condition.reason,
            "message": condition.message[:MESSAGE_CHARACTERS_MAX],
        }
        result.append(entry)
    return result


def previous(resource: Manifest) -> dict[str, Mapping[str, Any]]:
    """What was said before, by type."""
    told = (resource.get("status") or {}).get("conditions") or ()
    return {condition["type"]: condition for condition in told}


def events(found: Iterable[Condition], resource: Manifest) -> list[Event]:
    """An Event for each condition whose status or reason is new: what went wrong, and that it is well again. A resource that was
    only just made is told what is wrong with it, not that it is not there yet, nor every step of its way, nor its end: that it is ready is told;
    and one that is ready not that it is available too."""
    found = list(found)
    before = previous(resource)
    begins = _said(before, READY) == Verdict.FALSE and _said(before, PROGRESSING) == Verdict.TRUE
    is_ready = any(condition.type == READY and condition.holds for condition in found)
    told: dict[tuple[str, str], Event] = {}
    for condition in found:
        old = before.get(condition.type)
        same = old is not None and (old.get("status"), old.get("reason")) == (condition.status.value, condition.reason)
        if same or condition.status == Verdict.UNKNOWN:
            continue
        if old is None and (condition.holds or condition.type not in (ACCEPTED, RESOLVED_REFS)):
            continue
        if begins and condition.type in STEPS and _said(before, condition.type) == condition.status:
            continue
        if is_ready and condition.type == AVAILABLE:
            continue
        if condition.type == PROGRESSING and condition.reason == COMPLETE and _comes_up(before):
            continue
        bad = condition.reason in STUCK_REASONS if condition.type == PROGRESSING else not condition.holds
        event = Event(
            type="Warning" if bad else "Normal",
            reason=condition.reason,
            message=f"{condition.type}: {condition.message}"[:MESSAGE_CHARACTERS_MAX],
        )
        told.setdefault((condition.reason, condition.message), event)
    return list(told.values())


def _comes_up(before: Mapping[str, Mapping[str, Any]]) -> bool:
    """There has been progress ever since its first status: nothing of it has been done before."""
    first = before.get(ACCEPTED, {}).get("lastTransitionTime")
    return first is not None and before.get(PROGRESSING, {}).get("lastTransitionTime") == first


def _said(before: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    return str(before.get(kind, {}).get("status", ""))


def ready(parts: Sequence[Condition]) -> Condition:
    """The summary: what the first of these says that does not hold."""
    missing = next((part for part in parts if not part.holds), None)
    if missing is not None:
        return no(READY, missing.reason, missing.message)
    return yes(READY, "Ready", parts[-1].message)


def listed(items: Sequence[str]) -> str:
    """A few of them, and how many more."""
    shown = "; ".join(items[:LISTED_MAX])
    return shown if len(items) <= LISTED_MAX else f"{shown}; and {len(items) - LISTED_MAX} more"


def resolved_refs(problems: Iterable[Trouble]) -> Condition:
    """Whether what pods refer to is there. The operator reads no Secret: it learns from the pods that one is missing."""
    missing = [problem for problem in problems if problem.reference]
    if missing:
        return no(RESOLVED_REFS, missing[0].reason, listed(unique(problem.message for problem in missing)))
    return yes(RESOLVED_REFS, "ResolvedRefs", "everything that is referred to is there")


def unique(messages: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(messages))


# The connector --------------------------------------------------------------------------------------------------------


def report_of(pod: Pod, container_name: str) -> Mapping[str, Any] | None:
    """What the container that tries the connector said, if it has."""
    container = pod.container(container_name)
    if container is None or not container.termination_message:
        return None
    try:
        found = json.loads(container.termination_message)
    except ValueError:
        return {"loaded": False, "reason": "NoReport", "message": container.termination_message[:200]}
    return found if isinstance(found, dict) else None


def connector_loaded(pods: Sequence[Pod], container_name: str) -> tuple[Condition, int]:
    """(the condition, how many pods have it): False as soon as one engine serves without the commons."""
    reports = [(pod, report) for pod in pods if (report := report_of(pod, container_name)) is not None]
    without = [(pod, report) for pod, report in reports if not report.get("loaded")]
    loaded = len(reports) - len(without)
    if without:
        pod, report = without[0]
        reason = str(report.get("reason") or "NotLoadable")
        message = f"{len(without)} of {len(reports)} engines serve without the commons; pod {pod.name}: {report.get('message')}"
        return no(CONNECTOR_LOADED, reason, message), loaded
    if not reports:
        return unknown(CONNECTOR_LOADED, "NotTriedYet", "no engine pod has tried the connector yet"), 0
    return yes(CONNECTOR_LOADED, "Loaded", f"the connector loads in {loaded} of {loaded} engines"), loaded
