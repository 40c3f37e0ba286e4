"""Random resources from the schemas of the CustomResourceDefinitions, by a seed: valid ones, and ones with a fault in them.

    maker = Maker(seed=7)
    spec = maker.valid(InferenceDeployment)            # one that the models take
    spec, fault = maker.faulty(InferenceDeployment)    # the same with something broken, and what

The schemas do not tell rules, so a valid one is found by trying: what a model complains of is made anew until it complains no more.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Sequence
from typing import Any, Final

from crd_case import BASES, Spec, body
from crd_text import text_like
from kvcommons_operator.api import InvalidResourceError, Resource, parse
from kvcommons_operator.crd.definitions import definitions

Schema = dict[str, Any]
Path = tuple[Any, ...]
"""Names and numbers of items."""

TRIES_MAX: Final = 400
LIST_LENGTH_MAX: Final = 3
DEPTH_PLENTY: Final = 3
"""Down to here optional fields are as likely there as not; below they get rarer."""
SCHEMAS: Final[dict[str, Schema]] = {
    crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for crd in definitions().values()
}


class NoneFoundError(Exception):
    """No valid resource was found in `TRIES_MAX` tries; the seed is in the message."""


class Maker:
    """Makes random specs; the same seed makes the same ones in the same order."""

    def __init__(self, seed: int, richness: float = 0.4) -> None:
        self.seed = seed
        self._richness = richness
        """How likely an optional field is there."""
        self._random = random.Random(seed)

    def valid(self, kind: type[Resource]) -> Spec:
        """A spec that the models take.

        :raises NoneFoundError: when none was found.
        """
        schema = SCHEMAS[kind.KIND]
        spec: Spec = self._value(schema, 0)
        for _ in range(TRIES_MAX):
            path = _complaint(kind, spec)
            if path is None:
                return spec
            spec = self._anew(schema, spec, path)
        raise NoneFoundError(f"no valid {kind.KIND} with seed {self.seed} in {TRIES_MAX} tries")

    def faulty(self, kind: type[Resource]) -> tuple[Spec, str]:
        """A valid spec with one thing changed that most likely breaks it, and what was done."""
        spec = self.valid(kind)
        places = list(_places(SCHEMAS[kind.KIND], spec, ()))
        path, schema = self._random.choice(places[1:] or places)
        value, fault = self._broken(schema, _get(spec, path))
        return _put(spec, path, value), f"{_shown(path)}: {fault}"

    def _value(self, schema: Schema, depth: int) -> Any:
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            return self._random.choice([self._random.randint(0, 9), text_like(schema["pattern"], self._random)])
        match schema["type"]:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._list(schema, depth)
            case "integer":
                return self._number(schema)
            case "boolean":
                return self._random.random() < 0.5
        return self._text(schema)

    def _object(self, schema: Schema, depth: int) -> Spec:
        if "additionalProperties" in schema:
            count = self._random.randint(0, min(LIST_LENGTH_MAX, schema["maxProperties"]))
            keys = [text_like(_key_pattern(schema), self._random) for _ in range(count)]
            return {key: self._value(schema["additionalProperties"], depth + 1) for key in keys}
        chance = self._richness * (1 if depth < DEPTH_PLENTY else 0.5 ** (depth - DEPTH_PLENTY))
        return {
            name: self._value(part, depth + 1)
            for name, part in schema["properties"].items()
            if name in schema.get("required", ()) or self._random.random() < chance
        }

    def _list(self, schema: Schema, depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        count = self._random.randint(least, max(least, min(LIST_LENGTH_MAX, schema["maxItems"])))
        return [self._value(schema["items"], depth + 1) for _ in range(count)]

    def _number(self, schema: Schema) -> int:
        least, most = schema["minimum"], schema.get("maximum", schema["minimum"] + 10**6)
        near = self._random.randint(least, min(most, least + 8))
        return int(
            self._random.choice([near, schema.get("default", near), least, most, self._random.randint(least, most)])
        )

    def _text(self, schema: Schema) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength", 64)
        for _ in range(TRIES_MAX):
            text = text_like(_pattern(schema), self._random)
            if least <= len(text) <= most:
                return text
        raise NoneFoundError(f"no text of {least} to {most} characters like {_pattern(schema)}")

    def _anew(self, schema: Schema, spec: Spec, path: Path) -> Spec:
        """The spec with the part at fault made anew or, where it may be, left out; now and then the part around it."""
        depth = max(0, len(path) - self._random.choice([0, 0, 0, 1, 1, 2]))
        path = path[:depth]
        around = _schema_at(schema, path[:-1])
        name = path[-1] if path else None
        if isinstance(name, str) and name not in around.get("required", ()) and self._random.random() < 0.4:
            return _without(spec, path)
        whole = _put(spec, path, self._value(_schema_at(schema, path), len(path)))
        return whole

    def _broken(self, schema: Schema, value: Any) -> tuple[Any, str]:
        """Another value that the schema does not allow, and why."""
        faults: list[tuple[Any, str]] = [([], "a list") if schema.get("type") != "array" else ({}, "an object")]
        if "enum" in schema:
            faults.append(("no-such", "not one of the values"))
        if "maximum" in schema:
            faults.append((schema["maximum"] + 1, "too large"))
        if "minimum" in schema:
            faults.append((schema["minimum"] - 1, "too small"))
        if "maxLength" in schema and "enum" not in schema:
            faults.append(("a" * (schema["maxLength"] + 1), "too long"))
        if "pattern" in schema or _spelling(schema):
            faults.append(("\n", "not like the pattern"))
        if isinstance(value, list) and value:
            faults.append((value * (schema["maxItems"] // len(value) + 1), "too many"))
        if isinstance(value, dict) and "properties" in schema:
            faults.append(({**value, "noSuchField": 1}, "an unknown field"))
            faults.extend(
                ({k: v for k, v in value.items() if k != name}, f"no {name}") for name in schema.get("required", ())
            )
        elif isinstance(value, dict):
            faults.append(({**value, "a b": "c"}, "a key that is no name"))
        return self._random.choice(faults)


def _complaint(kind: type[Resource], spec: Spec) -> Path | None:
    """Where in the spec the model finds its first fault; None when it finds none."""
    try:
        parse(kind, body(kind, "x", spec))
    except InvalidResourceError as error:
        return _existing(spec, error.problems[0].path)
    return None


def _existing(spec: Spec, shown: str) -> Path:
    """The longest part of a path such as spec.tiers.secondary[0].path that is there."""
    words: list[Any] = [int(word) if word.isdigit() else word for word in re.findall(r"[^.\[\]]+", shown)[1:]]
    found: Path = ()
    value: Any = spec
    for word in words:
        if (isinstance(value, dict) and word in value) or (
            isinstance(value, list) and isinstance(word, int) and word < len(value)
        ):
            value = value[word]
            found = (*found, word)
        else:
            break
    return found


def _places(schema: Schema, value: Any, path: Path) -> list[tuple[Path, Schema]]:
    found = [(path, schema)]
    if isinstance(value, dict):
        for name, part in value.items():
            found += _places(_child(schema, name), part, (*path, name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            found += _places(schema["items"], part, (*path, number))
    return found


def _child(schema: Schema, step: Any) -> Schema:
    if isinstance(step, int):
        part: Schema = schema["items"]
    elif "additionalProperties" in schema:
        part = schema["additionalProperties"]
    else:
        part = schema["properties"][step]
    return part


def _schema_at(schema: Schema, path: Path) -> Schema:
    for step in path:
        schema = _child(schema, step)
    return schema


def _get(value: Any, path: Sequence[Any]) -> Any:
    for step in path:
        value = value[step]
    return value


def _put(spec: Spec, path: Path, value: Any) -> Spec:
    if not path:
        return dict(value)
    whole = copy.deepcopy(spec)
    _get(whole, path[:-1])[path[-1]] = value
    return whole


def _without(spec: Spec, path: Path) -> Spec:
    whole = copy.deepcopy(spec)
    del _get(whole, path[:-1])[path[-1]]
    return whole


def _shown(path: Path) -> str:
    return "spec" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _pattern(schema: Schema) -> str:
    return str(schema.get("pattern")) if "pattern" in schema else _spelling(schema) or r"^[a-z.-]{1,12}$"


def _spelling(schema: Schema) -> str:
    """The pattern that stands in a text's own rule; empty where none does."""
    rules = schema.get("x-kubernetes-validations", ()) if schema.get("type") == "string" else ()
    found = [re.search(r"self\.matches\(r'(.*?)'\)", rule["rule"]) for rule in rules]
    return next((one[1] for one in found if one is not None), "")


def _key_pattern(schema: Schema) -> str:
    found = re.search(r"matches\(r'(.*)'\)", schema["x-kubernetes-validations"][0]["rule"])
    assert found
    return found[1]


KINDS: Final = tuple(BASES)
