"""pydantic's JSON schema of a model as the structural schema that Kubernetes takes: no references, no unions, everything bounded.

Kubernetes 1.29 is the oldest that takes it: `quantity` came to CEL there, as did `fieldPath` and `reason` of rules to
general use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from kvcommons_operator.api.common import KEY_MESSAGES

Schema = dict[str, Any]

KEPT: Final = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "items",
    "maxProperties",
    "additionalProperties",
    "properties",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)
"""What a structural schema may hold here, in the order in which it is written."""
IGNORED: Final = frozenset({"title", "propertyNames"})
KEY_LENGTH_MAX: Final = 317
INT32_MAX: Final = 2**31 - 1


class UnstructuralError(Exception):
    """A model says something that no structural schema can."""


def structural(model: type[BaseModel], leave: tuple[str, ...] = ()) -> Schema:
    """The structural schema of a model.

    :param leave: fields of it that stay out.
    :raises UnstructuralError: naming the path and what can't be said there.
    """
    whole = model.model_json_schema(by_alias=True, mode="validation")
    whole["properties"] = {name: part for name, part in whole["properties"].items() if name not in leave}
    return _flat(whole, whole.get("$defs", {}), "")


def _flat(schema: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    merged = _resolved(schema, defs, path)
    if "const" in merged:
        merged["enum"] = [merged.pop("const")]
    if merged.get("x-kubernetes-int-or-string"):
        merged.pop("type", None)
    if merged.get("default", ...) is None:
        del merged["default"]
    if merged.get("type") == "object":
        _flatten_object(merged, defs, path)
    if merged.get("type") == "array":
        merged["items"] = _bare(_flat(merged["items"], defs, f"{path}[]"))
    if merged.get("type") == "integer":
        merged["format"] = "int32" if merged.get("maximum", INT32_MAX + 1) <= INT32_MAX else "int64"
    if "description" in merged:
        merged["description"] = " ".join(merged["description"].split())
    unknown = set(merged) - set(KEPT) - IGNORED
    if unknown:
        raise UnstructuralError(
            f"{path or 'the model'}: {', '.join(sorted(unknown))} can't be said in a structural schema"
        )
    return {key: merged[key] for key in KEPT if key in merged}


def _flatten_object(merged: Schema, defs: Mapping[str, Any], path: str) -> None:
    keys = ""
    if len(merged.get("patternProperties", {})) == 1:
        ((keys, merged["additionalProperties"]),) = merged.pop("patternProperties").items()
    properties = merged.get("properties")
    if properties is not None:
        merged["properties"] = {name: _flat(part, defs, f"{path}.{name}") for name, part in properties.items()}
        merged.pop("additionalProperties", None)
        if isinstance(merged.get("default"), dict):
            merged["default"] = _least(merged)
    elif isinstance(merged.get("additionalProperties"), dict):
        merged["additionalProperties"] = _flat(merged["additionalProperties"], defs, f"{path}[*]")
        if not keys:
            raise UnstructuralError(f"{path}: the keys of a map need a pattern")
        merged["x-kubernetes-validations"] = [_key_rule(keys)]
    else:
        raise UnstructuralError(f"{path or 'the model'}: an object needs fields, or a type for its values")


def _bare(schema: Schema) -> Schema:
    """Without defaults: were they stored in the items of a list, whoever applies the list again would see a difference for ever. The
    models have them all the same."""
    bare = {name: part for name, part in schema.items() if name != "default"}
    if "properties" in bare:
        bare["properties"] = {name: _bare(part) for name, part in bare["properties"].items()}
    if "additionalProperties" in bare:
        bare["additionalProperties"] = _bare(bare["additionalProperties"])
    return bare


def _key_rule(pattern: str) -> Schema:
    """Kubernetes' schemas know no pattern of keys; rules do."""
    return {
        "rule": f"self.all(key, key.size() <= {KEY_LENGTH_MAX} && key.matches(r'{pattern}'))",
        "message": KEY_MESSAGES[pattern],
        "reason": "FieldValueInvalid",
    }


def _least(schema: Mapping[str, Any]) -> Schema:
    """A default that leaves to the fields' own defaults what it can: rules are tried on it before those are filled in, so that where an
    object has rules its fields must stand in it."""
    properties = schema["properties"]
    if "x-kubernetes-validations" in schema:
        own = {name: part["default"] for name, part in properties.items() if "default" in part}
    else:
        own = {}
    said = {
        name: value
        for name, value in schema["default"].items()
        if value is not None and "default" not in properties[name]
    }
    return {**own, **{name: _least({**properties[name], "default": value}) for name, value in said.items()}}


def _resolved(schema: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    """The schema with its references and unions taken in; what stands beside a reference wins over what it refers to."""
    merged = dict(schema)
    for _ in range(8):  # a reference to a union of a reference: never deeper
        if "$ref" in merged:
            merged = {**defs[merged.pop("$ref").removeprefix("#/$defs/")], **merged}
        elif "allOf" in merged and len(merged["allOf"]) == 1:
            merged = {**merged.pop("allOf")[0], **merged}
        elif "anyOf" in merged:
            options = [option for option in merged.pop("anyOf") if option.get("type") != "null"]
            if len(options) != 1:
                raise UnstructuralError(
                    f"{path}: a union of {len(options)} types; give it one type, or an object with a field for each"
                )
            merged = {**options[0], **merged}
        else:
            merged.pop("$defs", None)
            return merged
    raise UnstructuralError(f"{path}: references within references")
