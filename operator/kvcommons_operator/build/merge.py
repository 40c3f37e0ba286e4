"""A strategic merge, as Kubernetes does it for pods: objects merge, lists of named things merge by name, other lists are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

MERGE_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
}
"""Lists of pods by what their items are told apart."""
WHOLE: Final = frozenset({"volumes", "env"})
"""Items that are one of several kinds: two kinds merged into one would be refused."""


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on it. None in `over` takes a field away."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        elif key in MERGE_KEYS and isinstance(result.get(key), Sequence):
            result[key] = _merged_list(key, result[key], value)
        else:
            result[key] = value
    return result


def _merged_list(key: str, base: Sequence[Any], over: Sequence[Any]) -> list[Any]:
    """Items of `base` in their order, each with its namesake laid on it (or replaced by it); then what is new."""
    by = MERGE_KEYS[key]
    changes = {item[by]: item for item in over}
    result = []
    for item in base:
        change = changes.pop(item[by], None)
        result.append(item if change is None else dict(change) if key in WHOLE else merged(item, change))
    return [*result, *changes.values()]
