"""What a pod means for the fleet. Pure: from the API server's JSON to instances that are wanted, and what is odd about it."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from kvcommons_router.roster import Presence, Wanted
from kvcommons_router.settings_instances import InstanceSettings, KubernetesSettings, Role

RANKS_ANNOTATION: Final = "kvcommons.io/data-parallel-size"
ROLE_LABEL: Final = "kvcommons.io/role"
ENGINE_ROLE: Final = "engine"
"""The operator's word for engines that do whole requests."""
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
RANKS_MAX: Final = 256
ENDED: Final = frozenset({"Succeeded", "Failed"})


class UnreadablePodError(Exception):
    """This is no pod as the API describes them."""


@dataclasses.dataclass(frozen=True, slots=True)
class PodView:
    """A pod as the fleet sees it."""

    name: str
    wanted: tuple[Wanted, ...]
    """One for each data-parallel rank; none where it has no address."""
    problems: tuple[str, ...] = ()
    """What it says that is not understood, for people."""


def view_of(pod: object, settings: KubernetesSettings) -> PodView:
    """What a pod is to the fleet.

    :raises UnreadablePodError: if it has no name.
    """
    metadata = _table(_table(pod).get("metadata"))
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise UnreadablePodError("an object without a name")
    status = _table(_table(pod).get("status"))
    address = _address(status.get("podIP"))
    if address is None:
        return PodView(name, ())
    problems: list[str] = []
    base: dict[str, Any] = {
        "url": f"http://{address}:{settings.port}",
        "model": settings.model,
        "models": settings.models,
        "node": _node(name, _table(_table(pod).get("spec")), settings),
        "zone": _text(_table(metadata.get("labels")).get(ZONE_LABEL)),
        "role": _role(metadata, problems),
    }
    presence = _presence(metadata, status)
    incarnation = f"{metadata.get('uid', '')}/{_restarts(status, settings.container)}"
    found: list[Wanted] = []
    for rank, instance in _ranks(name, metadata, problems):
        try:
            one = InstanceSettings.model_validate(base | {"name": instance, "dp_rank": rank})
        except ValidationError as error:
            problems.append(str(error.errors(include_url=False)[0]["msg"]))
            break
        found.append(Wanted(one, presence, incarnation, discovered=True))
    return PodView(name, tuple(found), tuple(problems))


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _address(value: object) -> str | None:
    try:
        address = ipaddress.ip_address(_text(value))
    except ValueError:
        return None
    return f"[{address}]" if address.version == 6 else str(address)


def _node(name: str, spec: Mapping[str, Any], settings: KubernetesSettings) -> str:
    return name if settings.node_by == "podName" else _text(spec.get("nodeName"))


def _presence(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> Presence:
    if metadata.get("deletionTimestamp") or status.get("phase") in ENDED:
        return Presence.LEAVING
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if _table(condition).get("type") == "Ready" and _table(condition).get("status") == "True":
            return Presence.READY
    return Presence.OUT


def _restarts(status: Mapping[str, Any], container: str) -> int:
    """How often the engine's container was started again; that of all containers where none has its name."""
    statuses = status.get("containerStatuses")
    found = [_table(one) for one in statuses] if isinstance(statuses, list) else []
    own = [one for one in found if one.get("name") == container] or found
    counts = [one.get("restartCount") for one in own]
    return sum(count for count in counts if isinstance(count, int))


def _role(metadata: Mapping[str, Any], problems: list[str]) -> Role:
    """The label, or the annotation; who says neither does whole requests."""
    value = _table(metadata.get("labels")).get(ROLE_LABEL) or _table(metadata.get("annotations")).get(ROLE_LABEL)
    if not value or value == ENGINE_ROLE:
        return Role.AGGREGATED
    try:
        return Role(value)
    except ValueError:
        problems.append(f"{ROLE_LABEL}: {_text(value)[:63]!r}: give one of {', '.join(Role)}; taken as aggregated")
        return Role.AGGREGATED


def _ranks(name: str, metadata: Mapping[str, Any], problems: list[str]) -> list[tuple[int | None, str]]:
    """(rank, name of the instance) of each data-parallel rank."""
    value = _table(metadata.get("annotations")).get(RANKS_ANNOTATION)
    if value is None:
        return [(None, name)]
    text = _text(value)
    size = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
    if not 1 <= size <= RANKS_MAX:
        problems.append(f"{RANKS_ANNOTATION}: {text[:63]!r}: give 1 to {RANKS_MAX}; taken as 1")
        size = 1
    return [(None, name)] if size == 1 else [(rank, f"{name}-dp{rank}") for rank in range(size)]
