"""The base of every model, and rules that the API server and this process share.

A model is the one source: `python -m kvcommons_operator.crd` makes the CustomResourceDefinitions from it, and the operator reads with it
what the API server stored. Fields are written snake_case here and camelCase in YAML; `parse_*` takes YAML's spelling alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

GROUP: Final = "kvcommons.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"


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
    if rule.field and not rule.field.startswith(".metadata"):  # the API server lets no rule point into metadata
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
        if None not in value.values():
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
