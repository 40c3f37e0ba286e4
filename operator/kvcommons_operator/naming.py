"""Which object a pod waits for, and which field of a resource names it. Pure; from the words of the kubelet, the scheduler and controllers.

The operator reads no Secret and no ConfigMap of a user: that one is missing it learns from what pods wait for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

SECRET: Final = "Secret"
CONFIG_MAP: Final = "ConfigMap"
CLAIM: Final = "PersistentVolumeClaim"
SERVICE_ACCOUNT: Final = "ServiceAccount"
TEXT_CHARACTERS_MAX: Final = 8_192
"""Of somebody else's words so many are looked at."""
DEPTH_MAX: Final = 24


class Missing(NamedTuple):
    """An object that is not there, or a key of it."""

    kind: str
    name: str
    """Empty where only the key is told."""
    key: str = ""
    """Empty where the whole object is missing."""


_WORDS: Final = (
    (SECRET, re.compile(r'\bsecrets? "(?P<name>[^"]+)" not found')),
    (CONFIG_MAP, re.compile(r'\bconfigmaps? "(?P<name>[^"]+)" not found')),
    (CLAIM, re.compile(r'\bpersistentvolumeclaims? "(?P<name>[^"]+)" not found')),
    (SERVICE_ACCOUNT, re.compile(r'\bserviceaccounts? "(?P<name>[^"]+)" not found')),
    ("PriorityClass", re.compile(r"no PriorityClass with name (?P<name>\S+) was found")),
    ("RuntimeClass", re.compile(r'\bRuntimeClass "(?P<name>[^"]+)" not found', re.IGNORECASE)),
    (SECRET, re.compile(r"couldn't find key (?P<key>\S+) in Secret (?:[^/\s]+/)?(?P<name>[^\s,;]+)")),
    (CONFIG_MAP, re.compile(r"couldn't find key (?P<key>\S+) in ConfigMap (?:[^/\s]+/)?(?P<name>[^\s,;]+)")),
    (SECRET, re.compile(r"references non-existent secret key: (?P<key>[^\s,;\]]+)")),
    (CONFIG_MAP, re.compile(r"references non-existent config key: (?P<key>[^\s,;\]]+)")),
)
_LOGINS: Final = re.compile(r"Unable to retrieve some image pull secrets \(([^)]+)\)")
_CLUSTER_WIDE: Final = frozenset({"PriorityClass", "RuntimeClass"})


def missing_in(text: str) -> tuple[Missing, ...]:
    """What these words say is not there, in the order of the patterns; empty where they say nothing of the kind."""
    shown = text[:TEXT_CHARACTERS_MAX]
    found: dict[Missing, None] = {}
    for kind, pattern in _WORDS:
        for match in pattern.finditer(shown):
            words = match.groupdict()
            found[Missing(kind, (words.get("name") or "").rstrip("."), (words.get("key") or "").rstrip("."))] = None
    return tuple(found)


def missing_logins(text: str) -> tuple[Missing, ...]:
    """Secrets with logins of registries that the kubelet did not find: it goes on without them, and the registry refuses it."""
    found = _LOGINS.search(text[:TEXT_CHARACTERS_MAX])
    return tuple(Missing(SECRET, name) for name in found[1].split(", ")) if found else ()


@dataclass(frozen=True)
class Naming:
    """The resources whose fields may name what a pod needs."""

    specs: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """(whose, its spec): whose is empty for the resource that is being looked at, else "KVCachePool llm/commons"."""
    made: frozenset[str] = frozenset()
    """Names of the Secrets that the operator makes for them."""

    def of(self, missing: Missing) -> str:
        """The field that names it, as in "spec.model.source.hub.tokenSecretRef"; empty where none does."""
        for whose, spec in self.specs:
            for path in _paths(spec, missing):
                return f"{path} of {whose}" if whose else path
        return ""

    def of_image(self, image: str) -> str:
        """The field that says this image; empty where the operator chose it."""
        for whose, spec in self.specs:
            for path, key, value in _walk(spec, "spec", DEPTH_MAX):
                if value == image and key in ("image", "node", "reference"):
                    return f"{path}.{key} of {whose}" if whose else f"{path}.{key}"
        return ""

    def told(self, missing: Missing, namespace: str) -> str:
        """What is missing and what to do about it, as a sentence."""
        field = self.of(missing)
        correct = f", or correct {field}" if field else ""
        place = "" if missing.kind in _CLUSTER_WIDE else f"{namespace}/"
        if not missing.name:
            return f"a {missing.kind} that it mounts has no key {missing.key}: add the key{correct}"
        if missing.key:
            return f"{missing.kind} {place}{missing.name} has no key {missing.key}: add the key{correct}"
        if missing.kind == SECRET and missing.name in self.made:
            return f"{missing.kind} {place}{missing.name} does not exist: it is one of the operator's own, which makes it again"
        return f"{missing.kind} {place}{missing.name} does not exist: create it{correct}"


def _paths(spec: Mapping[str, Any], missing: Missing) -> Iterator[str]:
    """Fields that name such an object, the likeliest spelling first. Without a name: those that name the key."""
    for path, key, value in _walk(spec, "spec", DEPTH_MAX):
        if not missing.name:
            if key == "key" and value == missing.key and _is_of(path, missing.kind):
                yield path
        elif value == missing.name and _names(path, key, missing.kind):
            yield path if key == "name" else f"{path}.{key}"


def _names(path: str, key: str, kind: str) -> bool:
    """Whether `key` of the object at `path` is how objects of this kind are named there."""
    match kind:
        case "PersistentVolumeClaim":
            return key == "claimName"
        case "Secret":
            return key == "secretName" or (key == "name" and _is_of(path, kind))
        case "ConfigMap":
            return key == "name" and _is_of(path, kind)
        case "ServiceAccount":
            return key == "serviceAccountName"
        case "PriorityClass":
            return key == "priorityClassName"
        case _:
            return key == "runtimeClassName"


def _is_of(path: str, kind: str) -> bool:
    return kind.lower() in path.rpartition(".")[2].lower()


def _walk(part: Any, path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """(path of the object, key, value) of everything that is no object itself."""
    if depth == 0:
        return
    if isinstance(part, Mapping):
        for key, value in part.items():
            if isinstance(value, Mapping | list):
                yield from _walk(value, f"{path}.{key}", depth - 1)
            else:
                yield path, str(key), value
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from _walk(value, f"{path}[{number}]", depth - 1)


NO_NAMING: Final = Naming()
"""Where nobody knows the resources."""
