"""Kubernetes' quantities: numbers with a suffix, as 4Gi or 250m."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_QUANTITY: Final = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")
_SUFFIXES: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", 1)},
    **{suffix + "i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}
QUANTITY_PATTERN: Final = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?(1[0-8]|[0-9]))?$"
SIZE_PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{1,3})?([KMGTP]i|[kMGTP])?$"
_SIZE: Final = re.compile(SIZE_PATTERN.removesuffix("$"))


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


def cel_quantity(part: str) -> str:
    """CEL for the quantity of a part that is a whole number or text.

    Not `quantity(string(part))`: to Kubernetes 1.29 the text of such a part is as long as a whole request may be, so that one rule over
    sixteen of them costs more than is allowed; and later ones take the text of a number for endless."""
    return f"(type({part}) == int ? quantity('0').add(int({part})) : quantity({part}))"


def cel_digits(part: str) -> str:
    """CEL for whether such a part is written in digits alone. A longer pattern would cost twice as much there."""
    return f"(type({part}) == int ? {part} >= 0 : !{part}.matches(r'\\D'))"


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
        return f"must be a size from {self.at_least} to {self.at_most}, with a suffix such as Mi or Gi"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text, then a quantity's spelling within bounds."""
        text = core_schema.str_schema(max_length=24)
        return core_schema.no_info_after_validator_function(self._within, text)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The same for the API server: in one rule, since a pattern of its own would be told as a pattern, before any rule."""
        cel = (
            f"self.matches(r'{SIZE_PATTERN}') && quantity(self).compareTo(quantity('{self.at_least}')) >= 0"
            f" && quantity(self).compareTo(quantity('{self.at_most}')) <= 0"
        )
        rule = {"rule": cel, "message": self.message, "reason": "FieldValueInvalid"}
        return {"type": "string", "maxLength": 24, "x-kubernetes-validations": [rule]}

    def _within(self, text: str) -> str:
        spelt = _SIZE.fullmatch(text) is not None
        if not spelt or not parse_quantity(self.at_least) <= parse_quantity(text) <= parse_quantity(self.at_most):
            raise PydanticCustomError("size", "{message}", {"message": self.message})
        return text


@dataclass(frozen=True)
class Spelt:
    """Makes `Annotated[str, Spelt(...)]` a text of a certain spelling, whose refusal is a sentence and not a regular expression."""

    pattern: str
    """Between ^ and $, in what Python and RE2 both read."""
    message: str
    """What to write instead."""
    length_max: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text, then its spelling."""
        return core_schema.no_info_after_validator_function(
            self._spelt, core_schema.str_schema(max_length=self.length_max)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The same for the API server."""
        rule = {"rule": f"self.matches(r'{self.pattern}')", "message": self.message, "reason": "FieldValueInvalid"}
        return {"type": "string", "maxLength": self.length_max, "x-kubernetes-validations": [rule]}

    def _spelt(self, text: str) -> str:
        if re.fullmatch(self.pattern.removesuffix("$"), text) is None:
            raise PydanticCustomError("spelling", "{message}", {"message": self.message})
        return text


ResourceQuantity = Annotated[
    str,
    Field(
        max_length=24,
        pattern=QUANTITY_PATTERN,
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
    BeforeValidator(text_of_int),
]
"""A quantity of any resource, also written as a whole number: 500m, 4Gi, 1."""
