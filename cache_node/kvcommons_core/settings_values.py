"""Values of settings: sizes with suffixes, lists with commas, how they are shown, and what to do about one that is refused. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo

_SUFFIXES: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
TAGS: Final = frozenset({"disk", "redis", "s3"})
"""Types of the items of lists."""
SIZE_REMEDY: Final = "give a number of bytes, or one with a unit: KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, TB"
_CHOICES_PATTERN: Final = re.compile(r"\^\(([\w|-]+)\)\$")
_BOUNDS: Final = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_KINDS: Final = {
    "int": "give a whole number",
    "float": "give a number",
    "bool": "give true or false",
    "string": "give text",
    "tuple": "give a list: with commas, or as JSON",
    "list": "give a list: with commas, or as JSON",
    "missing": "it is required",
    "union": "it needs a type: disk, redis or s3",
}


class Section(BaseModel):
    """A group of settings; unknown names are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


def parse_bytes(value: object) -> object:
    """ "4GiB", "512Mi", "2GB" or a number as bytes; anything else is left as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower().removesuffix("b")
    digits = text.rstrip("kmgti").strip()
    factor = _SUFFIXES.get(text[len(digits) :].strip())
    try:
        number = float(digits) if "." in digits else int(digits)
    except ValueError:
        return value
    return value if factor is None else int(number * factor)


def format_bytes(size: int) -> str:
    """The shortest exact spelling that parse_bytes reads: 4GiB, 1536KiB, 77."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size and size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)


def _size(value: object) -> object:
    size = parse_bytes(value)
    if isinstance(size, str):
        raise ValueError(SIZE_REMEDY)  # noqa: TRY004 - pydantic takes no TypeError
    return size


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_READ_SIZE: Final = BeforeValidator(_size)
Bytes = Annotated[int, _READ_SIZE]
Words = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(_split_commas)]


def without_password(url: str) -> str:
    """An address that may be shown: its user and password are stars, its query is left out."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    bare = url.partition("?")[0]
    return bare if "@" not in parts.netloc else bare.replace(parts.netloc, "***@" + parts.netloc.rpartition("@")[2], 1)


def is_size(field: FieldInfo) -> bool:
    """Whether a setting is a number of bytes."""
    return any(isinstance(one, BeforeValidator) and one.func is _size for one in field.metadata)


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """What a setting may be, where that is a short list."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def shown_default(field: FieldInfo) -> str:
    """A setting's default as it would be typed; empty where there is none."""
    value = field.default
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and is_size(field):
        return format_bytes(value)
    return "" if value in ("", (), None) else str(value)


def field_at(kind: type[BaseModel], location: Sequence[int | str]) -> FieldInfo | None:
    """The setting at a place that pydantic names; None for an item of a list."""
    model, field, last = kind, None, None
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            model, last = _model_in(field.annotation) or model, field
        elif isinstance(part, str) and last is not None:
            model = _model_in(last.annotation, part) or model
    return field


def names_at(kind: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """What may stand at such a place."""
    model, last = kind, None
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            last = model.model_fields[part]
            model = _model_in(last.annotation) or model
        elif isinstance(part, str) and last is not None:
            model = _model_in(last.annotation, part) or model
    return list(model.model_fields)


def _model_in(annotation: object, tag: str = "") -> type[BaseModel] | None:
    """The model of a setting; of several that differ by `type`, the one with this type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        types = get_args(annotation.model_fields["type"].annotation) if "type" in annotation.model_fields else ()
        return annotation if not tag or tag in types else None
    return next((found for argument in get_args(annotation) if (found := _model_in(argument, tag))), None)


def shown_location(location: Sequence[int | str]) -> tuple[int | str, ...]:
    """A place as a person writes it: pydantic puts the type of an item of a list behind its number."""
    return tuple(
        part
        for index, part in enumerate(location)
        if not (index > 0 and isinstance(location[index - 1], int) and part in TAGS)
    )


def remedy_of(problem: Mapping[str, Any], size: bool = False) -> str:
    """What to do about a refused value, from one of pydantic's errors, in words that need no knowledge of pydantic."""
    kind, context = str(problem["type"]), problem.get("ctx", {})
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        bound = context[name]
        return f"give {words} {format_bytes(bound) if size and isinstance(bound, int) else bound}"
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        return "give one of " + str(context.get("expected") or context["expected_tags"]).replace("'", "").replace(
            " or ", ", "
        )
    if kind == "string_pattern_mismatch":
        listed = _CHOICES_PATTERN.fullmatch(str(context["pattern"]))
        return (
            "give one of " + listed[1].replace("|", ", ") if listed else "it has characters that are not allowed here"
        )
    if kind in ("string_too_short", "too_short"):
        return f"give at least {context['min_length']} {'characters' if kind.startswith('string') else 'items'}"
    if kind in ("string_too_long", "too_long"):
        return f"give at most {context['max_length']} {'characters' if kind.startswith('string') else 'items'}"
    plain = _KINDS.get(kind.partition("_")[0])
    return plain or str(problem["msg"]).removeprefix("Value error, ")
