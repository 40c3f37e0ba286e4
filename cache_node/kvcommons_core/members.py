"""How members of a pool are called in its index. A cache node has the name that it was given; an engine's has a prefix, since a pod may be both."""

from __future__ import annotations

from typing import Final

ENGINE_PREFIX: Final = "engine:"


def engine_member(instance: str) -> str:
    """The member of an engine: of its pod, or of one data-parallel rank of it (`POD-dpN`)."""
    return ENGINE_PREFIX + instance
