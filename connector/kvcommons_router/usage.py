"""What an answer says of its prompt: read from its last bytes, never by parsing all of it."""

from __future__ import annotations

import re
from typing import NamedTuple

# In a string of the answer every quote is escaped, so no text that a model wrote looks like this.
_USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*\{')
_USUAL = b'"usage":{"prompt_tokens":'
_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,9})')
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,9})')


class Usage(NamedTuple):
    """Tokens of the prompt, and of those the reused ones (-1: not said)."""

    prompt_tokens: int
    cached_tokens: int


def usage_of(tail: bytes) -> Usage | None:
    """The usage in the end of an answer, streamed or not, if there is one."""
    at = tail.rfind(_USUAL)
    if at >= 0 and tail[at - 1 : at] != b"\\":  # as engines write it: no need to search
        begin = at + len(_USUAL)
        digits = tail[begin : tail.find(b",", begin, begin + 10)]
        if digits.isdigit() and b'"cached_tokens"' not in tail[begin:]:
            return Usage(int(digits), -1)
    at = tail.rfind(b'"usage"')
    if at < 0:
        return None
    found = _USAGE.search(tail, max(0, at - 1))
    if found is None:
        return None
    prompt = _PROMPT.search(tail, found.end())
    if prompt is None:
        return None
    cached = _CACHED.search(tail, found.end())
    return Usage(int(prompt.group(1)), int(cached.group(1)) if cached is not None else -1)
