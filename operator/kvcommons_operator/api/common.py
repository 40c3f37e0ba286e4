"""What all resources are made of: the base model, rules that the API server and this process share, bounded scalars, quantities.

A model is the one source: `python -m kvcommons_operator.crd` makes the CustomResourceDefinitions from it, and the operator reads with it
what the API server stored. Fields are written snake_case here and camelCase in YAML; `parse_*` takes YAML's spelling alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    Strict,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

GROUP: Final = "kvcommons.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

EMPTY: Final[dict[str, str]] = {}
"""The default of a map; models copy it."""


@dataclass(frozen=True)
class Rule:
    """One truth about an object, told twice: as CEL for the API server, as Python for this process and its tests."""

    cel: str
    message: str
    """What is wrong and what to write instead."""
    holds: Callable[[Any], bool]
    field: str = ""
    """Where the fault is, from the object that the rule stands on: ".tiers.memory"."""
    reason: str = "FieldValueInvalid"


@dataclass(frozen=True)
class Transition:
    """One truth about a change, as CEL (self, oldSelf) and as Python (old, new)."""

    cel: str
    message: str
    holds: Callable[[Any, Any], bool]
    field: str = ""
    reason: str = "FieldValueForbidden"


def _told(rule: Rule | Transition) -> dict[str, str]:
    told = {"rule": rule.cel, "message": rule.message, "reason": rule.reason}
    if rule.field:
        told["fieldPath"] = rule.field
    return told


def _with_rules(schema: dict[str, Any], model: type[Any]) -> None:
    rules = [_told(rule) for rule in (*model.RULES, *model.TRANSITIONS)]
    if rules:
        schema["x-kubernetes-validations"] = rules


class Model(BaseModel):
    """An object in a resource: every field known, bounded and described; nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        validate_default=True,
        json_schema_extra=_with_rules,
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()
    TRANSITIONS: ClassVar[tuple[Transition, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _nulls_as_the_api_server(cls, value: Any) -> Any:
        """The API server takes null for "left out" where there is a default, and refuses it elsewhere."""
        if not isinstance(value, dict):
            return value
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        return {
            key: part
            for key, part in value.items()
            if part is not None or key not in fields or fields[key].is_required() or fields[key].default is None
        }

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        broken = [rule for rule in self.RULES if not rule.holds(self)]
        if broken:
            message = "; ".join(rule.message for rule in broken)
            raise PydanticCustomError("rule", "{message}", {"message": message, "field": broken[0].field})
        return self

    def to_dict(self) -> dict[str, Any]:
        """As a person writes it in YAML: camelCase, without what is not set or is as by default. For parts of pods this is what
        Kubernetes wants, since the defaults are the same."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)

    def to_whole_dict(self) -> dict[str, Any]:
        """As the API server stores it: camelCase, with every default. For statuses."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class FailureMode(StrEnum):
    """What becomes of requests while a part is away."""

    FAIL_OPEN = "FailOpen"
    FAIL_CLOSED = "FailClosed"


# --- Quantities -------------------------------------------------------------------------------------------------------

_QUANTITY: Final = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")
_SUFFIXES: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", 1)},
    **{suffix + "i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}
QUANTITY_PATTERN: Final = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$"
SIZE_PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{1,3})?([KMGTP]i|[kMGTP])?$"


def parse_quantity(text: str) -> Decimal:
    """A Kubernetes quantity ("500m", "4Gi", "1e9") as a number.

    :raises ValueError: naming the text and the remedy.
    """
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity; write a number with a suffix, as 4Gi, 500M or 250m")
    number, suffix = Decimal(found[1]), found[2] or ""
    return number * _SUFFIXES[suffix] if suffix in _SUFFIXES else Decimal(found[1] + suffix)


def quantity_bytes(text: str) -> int:
    """A quantity as whole bytes, rounded up as Kubernetes does."""
    return int(parse_quantity(text).to_integral_value(ROUND_CEILING))


def text_of_int(value: object) -> object:
    """A whole number as its text; everything else is left for pydantic to judge."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(frozen=True)
class Size:
    """Makes `Annotated[str, Size("1Mi", "1Ti")]` a size in bytes: a quantity within these bounds."""

    at_least: str
    at_most: str

    @property
    def message(self) -> str:
        """What such a size must be."""
        return f"must be a size from {self.at_least} to {self.at_most}, such as 4Gi"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text with a quantity's spelling, then within bounds."""
        text = core_schema.str_schema(pattern=SIZE_PATTERN, max_length=24)
        return core_schema.no_info_after_validator_function(self._within, text)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The same for the API server."""
        cel = (
            f"isQuantity(self) && quantity(self).compareTo(quantity('{self.at_least}')) >= 0"
            f" && quantity(self).compareTo(quantity('{self.at_most}')) <= 0"
        )
        rule = {"rule": cel, "message": self.message, "reason": "FieldValueInvalid"}
        return {"type": "string", "maxLength": 24, "pattern": SIZE_PATTERN, "x-kubernetes-validations": [rule]}

    def _within(self, text: str) -> str:
        if not parse_quantity(self.at_least) <= parse_quantity(text) <= parse_quantity(self.at_most):
            raise PydanticCustomError("size", "{message}", {"message": self.message})
        return text


ResourceQuantity = Annotated[
    str,
    BeforeValidator(text_of_int),
    Field(
        max_length=24,
        pattern=QUANTITY_PATTERN,
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]
"""A quantity of any resource, also written as a whole number: 500m, 4Gi, 1."""

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
AbsolutePath = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^/[^\x00-\x1f:]*$")]
RelativePath = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9._-][A-Za-z0-9._/ -]*$")]
QualifiedName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=317,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    ),
]
"""The key of a label, annotation, taint or extended resource."""
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
AnnotationValue = Annotated[str, Field(max_length=4_096)]
Labels = Annotated[dict[QualifiedName, LabelValue], Field(max_length=32)]
Annotations = Annotated[dict[QualifiedName, AnnotationValue], Field(max_length=32)]
Argument = Annotated[str, Field(max_length=4_096)]


def list_type(kind: str, *keys: str) -> dict[str, JsonValue]:
    """What says how a list is merged by server-side apply: atomic, a set, or a map by keys."""
    told: dict[str, JsonValue] = {"x-kubernetes-list-type": kind}
    if keys:
        told["x-kubernetes-list-map-keys"] = list(keys)
    return told


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
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32, json_schema_extra=list_type("atomic"))] = ()
    """Values for In and NotIn; left out for the others."""

    RULES = (
        Rule(
            cel="(self.operator in ['In', 'NotIn']) == (self.values.size() > 0)",
            message="In and NotIn need `values`; Exists and DoesNotExist take none",
            holds=_values_fit,
            field=".values",
        ),
    )


class LabelSelector(Model):
    """Which objects are meant, by their labels; all of it must match, and an empty selector matches everything."""

    match_labels: Labels = EMPTY
    """Labels that an object must have, with exactly these values."""
    match_expressions: Annotated[
        tuple[SelectorRequirement, ...], Field(max_length=16, json_schema_extra=list_type("atomic"))
    ] = ()
    """Conditions on labels that an object must fulfil, all of them."""
