"""What of a cache node's template a living pod can take, and the hash of the rest of it."""

from __future__ import annotations

import copy
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.build import pods
from kvcommons_operator.observed import Manifest
from kvcommons_operator.pod_memory import Memory
from kvcommons_operator.sizing import Size

ARENA_VARIABLE: Final = "KVCOMMONS_NODE__ARENA_BYTES"


def shaped(template: Manifest) -> Manifest:
    """A template with the hash of all of it but its size."""
    bare = copy.deepcopy(template)
    container = _container(bare)
    container["env"] = [one for one in container["env"] if one["name"] != ARENA_VARIABLE]
    for told in container["resources"].values():
        told.pop("memory", None)
    return pods.annotated(template, names.SHAPE_HASH, pods.digest(bare))


def size_of(template: Manifest) -> Size | None:
    """Of a template that is shaped and stamped. None for an arena of huge pages: those are what the pod asked of the machine."""
    container, marks = _container(template), template["metadata"]["annotations"]
    memory = Memory.of(container["resources"])
    if memory is None or any(name.startswith("hugepages-") for name in container["resources"]["limits"]):
        return None
    arena = next(one["value"] for one in container["env"] if one["name"] == ARENA_VARIABLE)
    return Size(
        template_hash=marks[names.TEMPLATE_HASH],
        shape_hash=marks[names.SHAPE_HASH],
        arena_bytes=int(arena),
        memory=memory,
    )


def _container(template: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = next(
        one for one in template["spec"]["containers"] if one["name"] == names.CACHE_NODE_CONTAINER
    )
    return found
