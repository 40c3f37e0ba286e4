"""Bounded scalars, and references to other objects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.quantities import parse_quantity, quantity_bytes

__all__ = [
    "EMPTY",
    "KEY_MESSAGES",
    "QUALIFIED_PATTERN",
    "RESOURCE_PATTERN",
    "AbsolutePath",
    "AnnotationValue",
    "Annotations",
    "Argument",
    "EnvName",
    "FailureMode",
    "HostName",
    "Image",
    "KeyName",
    "Label",
    "LabelSelector",
    "LabelValue",
    "Labels",
    "ListType",
    "LocalRef",
    "Model",
    "ObjectName",
    "Percent",
    "Port",
    "QualifiedName",
    "RelativePath",
    "Replicas",
    "ResourceName",
    "Rule",
    "Seconds",
    "SecretKeyRef",
    "SelectorOperator",
    "SelectorRequirement",
    "StrictBool",
    "StrictInt",
    "parse_quantity",
    "quantity_bytes",
]

EMPTY: Final[dict[str, str]] = {}
"""The default of a map; models copy it."""


class FailureMode(StrEnum):
    """What becomes of requests while a part is away."""

    FAIL_OPEN = "FailOpen"
    FAIL_CLOSED = "FailClosed"


# --- Bounded scalars --------------------------------------------------------------------------------------------------

StrictBool = Annotated[bool, Strict()]
StrictInt = Annotated[int, Strict()]
Port = Annotated[StrictInt, Field(ge=1, le=65_535)]
Percent = Annotated[StrictInt, Field(ge=0, le=100)]
Seconds = Annotated[StrictInt, Field(ge=0, le=86_400)]
Replicas = Annotated[StrictInt, Field(ge=0, le=1_024)]

Label = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""A DNS label: the name of a namespace, container or volume."""
ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]
"""A DNS subdomain: the name of an object."""
KeyName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""A key of a Secret or ConfigMap."""
EnvName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
Image = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")]
"""A container image: registry/repository:tag, or better @sha256:digest."""
HostName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    ),
]
_STEP = r"\.?[^\x00-\x1f:/.][^\x00-\x1f:/]*"  # no step of a path is . or ..
AbsolutePath = Annotated[str, Field(min_length=1, max_length=512, pattern=rf"^/({_STEP}(/{_STEP})*/?)?$")]
RelativePath = Annotated[str, Field(min_length=1, max_length=512, pattern=rf"^{_STEP}(/{_STEP})*$")]
_PREFIX = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
QUALIFIED_PATTERN: Final = rf"^({_PREFIX})?{_NAME}$"
RESOURCE_PATTERN: Final = rf"^(cpu|memory|ephemeral-storage|{_PREFIX}{_NAME})$"
KEY_MESSAGES: Final = {
    QUALIFIED_PATTERN: "keys are names such as app or example.com/app: letters, digits, '-', '_' and '.', at most 63 after the '/'",
    RESOURCE_PATTERN: "keys are cpu, memory, ephemeral-storage, or names such as nvidia.com/gpu",
}
"""What the keys of maps are, by their pattern."""
QualifiedName = Annotated[str, Field(min_length=1, max_length=317, pattern=QUALIFIED_PATTERN)]
"""The key of a label, annotation, taint or extended resource."""
ResourceName = Annotated[str, Field(min_length=1, max_length=317, pattern=RESOURCE_PATTERN)]
"""What a container can ask its node for."""
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
AnnotationValue = Annotated[str, Field(max_length=4_096)]
Labels = Annotated[dict[QualifiedName, LabelValue], Field(max_length=32)]
Annotations = Annotated[dict[QualifiedName, AnnotationValue], Field(max_length=32)]
Argument = Annotated[str, Field(max_length=4_096)]


@dataclass(frozen=True, init=False)
class ListType:
    """How a list is merged by server-side apply: atomic, a set, or a map by keys. The last two take nothing twice."""

    kind: Literal["atomic", "set", "map"]
    keys: tuple[str, ...]

    def __init__(self, kind: Literal["atomic", "set", "map"], *keys: str) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "keys", keys)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The list, then nothing twice in it."""
        return core_schema.no_info_after_validator_function(self._unique, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The same for the API server."""
        told: dict[str, Any] = {**handler(schema), "x-kubernetes-list-type": self.kind}
        if self.keys:
            told["x-kubernetes-list-map-keys"] = [to_camel(key) for key in self.keys]
        return told

    def _unique(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.kind == "atomic":
            return items
        seen = [tuple(getattr(item, key) for key in self.keys) if self.keys else item for item in items]
        for place, value in enumerate(seen):
            if value in seen[:place]:
                text = ", ".join(map(str, value)) if self.keys else value
                raise PydanticCustomError("duplicate", "{text} is there twice", {"text": text, "field": f"[{place}]"})
        return items


# --- References -------------------------------------------------------------------------------------------------------


class LocalRef(Model):
    """An object in the same namespace."""

    name: ObjectName
    """Name of the object, which must be in the same namespace as this resource."""


class SecretKeyRef(Model):
    """One key of a Secret in the same namespace. Only the pods that need it mount it; the operator never reads it."""

    name: ObjectName
    """Name of the Secret, which must be in the same namespace as this resource."""
    key: KeyName
    """Key in the Secret's data."""


class SelectorOperator(StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


def _values_fit(requirement: SelectorRequirement) -> bool:
    return (requirement.operator in ("In", "NotIn")) == bool(requirement.values)


class SelectorRequirement(Model):
    """One condition on a label."""

    key: QualifiedName
    """Key of the label."""
    operator: SelectorOperator
    """In and NotIn compare with `values`; Exists and DoesNotExist look whether the label is there at all."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32), ListType("atomic")] = ()
    """Values for In and NotIn; left out for the others."""

    RULES = (
        Rule(
            cel="(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
            message="In and NotIn need `values`; Exists and DoesNotExist take none",
            holds=_values_fit,
            field=".values",
        ),
    )


class LabelSelector(Model):
    """Which objects are meant, by their labels; all of it must match, and an empty selector matches everything."""

    match_labels: Labels = EMPTY
    """Labels that an object must have, with exactly these values."""
    match_expressions: Annotated[tuple[SelectorRequirement, ...], Field(max_length=16), ListType("atomic")] = ()
    """Conditions on labels that an object must fulfil, all of them."""
