"""Memory that a container of a living pod asks for and has, and what keeps it from getting more (pods/resize). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kvcommons_operator.api.quantities import quantity_bytes

PENDING = "PodResizePending"
UNDER_WAY = "PodResizeInProgress"
INFEASIBLE = "Infeasible"
NO_ROOM = "enough capacity"
"""The kubelet's words where the machine is too small: a new pod would find no room there either."""


PAGE_BYTES = 4_096


class Memory(NamedTuple):
    """What a container asks for, or has."""

    request_bytes: int
    limit_bytes: int

    def is_as_good_as(self, other: Memory) -> bool:
        """Kernels limit memory in whole pages: what was asked for may come as a little less."""
        return all(abs(one - two) < PAGE_BYTES for one, two in zip(self, other, strict=True))

    def joined(self, other: Memory) -> Memory:
        """The least that covers both."""
        return Memory(max(self.request_bytes, other.request_bytes), max(self.limit_bytes, other.limit_bytes))

    @classmethod
    def of(cls, resources: Mapping[str, Any] | None) -> Memory | None:
        """Of `resources` as containers and their statuses have them; None where they limit no memory."""
        limits = (resources or {}).get("limits") or {}
        requests = (resources or {}).get("requests") or {}
        if "memory" not in limits:
            return None
        limit = quantity_bytes(str(limits["memory"]))
        return cls(quantity_bytes(str(requests["memory"])) if "memory" in requests else limit, limit)

    @property
    def resources(self) -> dict[str, Any]:
        """As a container's `resources`."""
        return {"requests": {"memory": str(self.request_bytes)}, "limits": {"memory": str(self.limit_bytes)}}


class Refusal(NamedTuple):
    """Why a pod was not given what was asked for."""

    why: str
    final: bool
    """Asking again is useless; else a person has to do something (a quota, a role)."""


class PodMemory(NamedTuple):
    """Of one container of a pod."""

    asked: Memory | None = None
    """By the pod's specification."""
    given: Memory | None = None
    """By the kubelet, as far as it tells."""
    infeasible: bool = False
    """The kubelet will never do what is asked, and another pod may have it."""
    obstacle: str = ""
    """Why it has not done it yet, in its words."""

    @classmethod
    def parse(cls, manifest: Mapping[str, Any], container: str) -> PodMemory:
        """Of a pod as the API server sends it."""
        spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
        asked: Mapping[str, Any] = next(
            (one for one in spec.get("containers") or () if one.get("name") == container), {}
        )
        given: Mapping[str, Any] = next(
            (one for one in status.get("containerStatuses") or () if one.get("name") == container), {}
        )
        found = {one.get("type"): one for one in status.get("conditions") or () if one.get("status") == "True"}
        why = found.get(PENDING) or found.get(UNDER_WAY) or {}
        words = str(why.get("message") or "")
        return cls(
            asked=Memory.of(asked.get("resources")),
            given=Memory.of(given.get("resources")),
            infeasible=why.get("reason") == INFEASIBLE and NO_ROOM not in words,
            obstacle=words,
        )


NO_MEMORY = PodMemory()
"""Nobody asks what this pod has."""
