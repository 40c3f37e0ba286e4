"""Whole resources: reads what the API server stored, or says with field paths why it can't.

pool = parse_pool(body)          # body: the object as a dict
pool.key, pool.spec.tiers.memory.capacity, pool.metadata.uid
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from pydantic import ConfigDict, ValidationError

from kvcommons_operator.api.base import API_VERSION, Model, Rule
from kvcommons_operator.api.common import EMPTY, KEY_MESSAGES
from kvcommons_operator.api.deployment import InferenceDeploymentSpec
from kvcommons_operator.api.pool import KVCachePoolSpec
from kvcommons_operator.api.role import InferenceRoleSpec
from kvcommons_operator.api.status import InferenceDeploymentStatus, InferenceRoleStatus, KVCachePoolStatus

NAME_LENGTH_MAX: Final = 63
READ_MAX: Final = 4_096


class Metadata(Model):
    """What Kubernetes says about an object, as far as the operator reads it."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()
    labels: dict[str, str] = EMPTY
    annotations: dict[str, str] = EMPTY


def _is_label(name: str) -> bool:
    """Whether a name can be a label's value and the name of a Service."""
    rest = name.replace("-", "a")
    return (
        0 < len(name) <= NAME_LENGTH_MAX
        and rest.isascii()
        and rest.isalnum()
        and rest == rest.lower()
        and name[0].isalpha()
        and name[-1] != "-"
    )


NAME_RULE: Final = Rule(
    cel="self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    message="the name must have at most 63 characters, begin with a letter, and hold only small letters, digits and '-': "
    "it becomes part of Services' names and the value of a label",
    holds=lambda it: _is_label(it.metadata.name),
    field=".metadata.name",
)


class Resource(Model):
    """One object with its metadata."""

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    RULES: ClassVar[tuple[Rule, ...]] = (NAME_RULE,)

    api_version: str = API_VERSION
    kind: str = ""
    metadata: Metadata

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.metadata.namespace, self.metadata.name

    @property
    def is_deleting(self) -> bool:
        """Whether it was deleted and only finalizers keep it: then nothing is created for it any more."""
        return self.metadata.deletion_timestamp is not None


class KVCachePool(Resource):
    """Keeps the KV caches of many engines as one commons: cache nodes with memory and disks, and an index of who has what."""

    KIND: ClassVar[str] = "KVCachePool"
    PLURAL: ClassVar[str] = "kvcachepools"

    spec: KVCachePoolSpec
    """What the pool should be."""
    status: KVCachePoolStatus = KVCachePoolStatus()
    """What the pool is; written by the operator."""


class InferenceDeployment(Resource):
    """Serves a model: engines, a router that knows what each of them has cached, and a Service in front."""

    KIND: ClassVar[str] = "InferenceDeployment"
    PLURAL: ClassVar[str] = "inferencedeployments"

    spec: InferenceDeploymentSpec
    """What should be served, and how."""
    status: InferenceDeploymentStatus = InferenceDeploymentStatus()
    """What is served; written by the operator."""


class InferenceRole(Resource):
    """The engines of one role of an InferenceDeployment, with a scale of their own. The operator makes them; don't create any."""

    KIND: ClassVar[str] = "InferenceRole"
    PLURAL: ClassVar[str] = "inferenceroles"

    spec: InferenceRoleSpec
    """How many engines the role should have."""
    status: InferenceRoleStatus = InferenceRoleStatus()
    """How the engines are; written by the operator."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field."""

    path: str
    """Where: spec.tiers.memory.capacity."""
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidResourceError(Exception):
    """A resource that can't be read. The API server refuses most of these; an older or newer CRD may let them through."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


ResourceT = TypeVar("ResourceT", bound=Resource)
_READ: dict[tuple[str, str], tuple[Any, Any]] = {}
"""By kind and uid: the latest specification, and what it was read as. Models are frozen."""


def parse(kind: type[ResourceT], body: Mapping[str, Any]) -> ResourceT:
    """Reads an object.

    :raises InvalidResourceError: naming every field that is wrong.
    """
    try:
        return kind.model_validate(body, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidResourceError(tuple(_problem(found) for found in _first_causes(error.errors()))) from error


def parse_pool(body: Mapping[str, Any]) -> KVCachePool:
    """Reads a KVCachePool; see `parse`. A wish that was read before is not read anew."""
    return _remembered(KVCachePool, body)


def parse_deployment(body: Mapping[str, Any]) -> InferenceDeployment:
    """Reads an InferenceDeployment; see `parse`. A wish that was read before is not read anew."""
    return _remembered(InferenceDeployment, body)


def parse_role(body: Mapping[str, Any]) -> InferenceRole:
    """Reads an InferenceRole; see `parse`."""
    return parse(InferenceRole, body)


def _remembered(kind: type[ResourceT], body: Mapping[str, Any]) -> ResourceT:
    """As `parse`, where only the rest of the object has changed since: an object is looked at many times for each change of its wish."""
    spec, key = body.get("spec"), (kind.KIND, str((body.get("metadata") or {}).get("uid") or ""))
    known = _READ.get(key)
    if known is not None and known[0] == spec:
        return parse(kind, {**body, "spec": known[1]})
    found = parse(kind, body)
    if key[1]:
        if len(_READ) >= READ_MAX:
            _READ.pop(next(iter(_READ)))
        _READ[key] = copy.deepcopy(spec), found.spec  # type: ignore[attr-defined]  # every kind has one
    return found


def _first_causes(errors: Sequence[Any]) -> list[Any]:
    """Without lists that are too short only because what is in them is wrong."""
    return [
        one
        for one in errors
        if one["type"] != "too_short"
        or not any(other is not one and other["loc"][: len(one["loc"])] == one["loc"] for other in errors)
    ]


def _problem(error: Any) -> Problem:
    place = error["loc"]
    if place[-1:] == ("[key]",):  # of a map, whose key comes before it
        told = KEY_MESSAGES.get(error.get("ctx", {}).get("pattern", ""), error["msg"])
        return Problem(_path(place[:-2]), f"{place[-2]!r}: {told}")
    return Problem(_path(place) + error.get("ctx", {}).get("field", ""), error["msg"])


def _path(place: Sequence[str | int]) -> str:
    """As the API server writes it: spec.tiers.secondary[0].capacity."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
