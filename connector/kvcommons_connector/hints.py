"""What a request says of its chunks' future, in `kv_transfer_params`: {"kvcommons": {"v": 1, "one_shot": true, "ttl_s": 600}}.

A hint is never a reason to fail a request: what is not understood is named in the log, once for each name, and left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

PRIORITY_MIN: Final = -4
PRIORITY_MAX: Final = 4
TTL_SECONDS_MAX: Final = 65_535

_log: Final = logging.getLogger(__name__)
_named: Final[set[str]] = set()  # of four names at most


def packed_hints(params: object) -> int:
    """The word that RESERVE carries (docs/protocol.md); 0 where a request says nothing."""
    given = params.get("kvcommons") if isinstance(params, Mapping) else None
    if not isinstance(given, Mapping) or given.get("v") != 1:
        return 0
    one_shot, session_end = _flag(given, "one_shot"), _flag(given, "session_end")
    priority = _number(given, "priority", PRIORITY_MIN, PRIORITY_MAX)
    ttl = _number(given, "ttl_s", 1, TTL_SECONDS_MAX)
    return one_shot | session_end << 1 | (priority & 0xFF) << 8 | ttl << 16


def _flag(given: Mapping[object, object], name: str) -> int:
    value = given.get(name, False)
    if isinstance(value, bool):
        return int(value)
    _ignored(name, value, "true or false")
    return 0


def _number(given: Mapping[object, object], name: str, least: int, most: int) -> int:
    value = given.get(name)
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    _ignored(name, value, f"a whole number of {least} to {most}")
    return 0


def _ignored(name: str, value: object, wanted: str) -> None:
    if name not in _named:
        _named.add(name)
        _log.warning("kv_transfer_params.kvcommons.%s is %.64r: ignored; give %s", name, value, wanted)
