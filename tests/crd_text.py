"""Random texts that match a regular expression, as far as those of the resources' schemas go."""

from __future__ import annotations

import functools
import random
from re import _constants as codes  # type: ignore[attr-defined, unused-ignore]  # the parser's own names; there are no public ones
from re import _parser as parser  # type: ignore[attr-defined, unused-ignore]
from typing import Any

REPEATS_MAX = 6
PRINTABLE = [chr(code) for code in range(32, 127)]


def text_like(pattern: str, source: random.Random) -> str:
    """A text that matches.

    :raises ValueError: for what is in no pattern of ours.
    """
    return "".join(_some(step, source) for step in _parsed(pattern))


@functools.cache
def _parsed(pattern: str) -> Any:
    return parser.parse(pattern)


def _some(step: Any, source: random.Random) -> str:
    kind, value = step
    if kind is codes.AT:
        return ""
    if kind is codes.LITERAL:
        return chr(value)
    if kind is codes.IN:
        return source.choice(_characters(repr(value), value))
    if kind is codes.SUBPATTERN:
        return "".join(_some(inner, source) for inner in value[3])
    if kind is codes.BRANCH:
        return "".join(_some(inner, source) for inner in source.choice(value[1]))
    if kind is codes.MAX_REPEAT:
        least, most, inner = value
        most = min(int(most), least + REPEATS_MAX)
        return "".join(_some(part, source) for _ in range(source.randint(least, most)) for part in inner)
    raise ValueError(f"{kind} is in no pattern of ours")


_known: dict[str, list[str]] = {}


def _characters(key: str, members: Any) -> list[str]:
    if key not in _known:
        allowed = [text for text in PRINTABLE if any(_in(member, ord(text)) for member in members)]
        negated = members[0][0] is codes.NEGATE
        _known[key] = [text for text in PRINTABLE if text not in allowed] if negated else allowed
    return _known[key]


def _in(member: Any, code: int) -> bool:
    kind, value = member
    if kind is codes.RANGE:
        return bool(value[0] <= code <= value[1])
    if kind is codes.CATEGORY and value is codes.CATEGORY_SPACE:
        return chr(code).isspace()
    return bool(kind is codes.LITERAL and value == code)
