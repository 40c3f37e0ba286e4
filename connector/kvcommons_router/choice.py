"""Which instance a request goes to, from what the index found. It reads, and counts turns; nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvcommons_router import picker
from kvcommons_router.context import Context
from kvcommons_router.fleet import Group, Instance
from kvcommons_router.index import Depths
from kvcommons_router.picker import NO_HIT, Hit, Shape

Hits = Mapping[int, Hit]


def hits_of(depths: Depths, step_tokens: float) -> Hits:
    """Depths in tokens, by instance. The last, incomplete step of a text has no key and counts as not found."""
    return {
        index: Hit(int(d[0] * step_tokens), int(d[1] * step_tokens), int(d[2] * step_tokens), int(d[3] * step_tokens))
        for index, d in depths.items()
    }


def choose(
    context: Context, group: Group, tried: Sequence[Instance], hits: Hits | None, shape: Shape
) -> Instance | None:
    """The best instance that has not been tried; None if all have."""
    members = group.usable
    candidates = group.candidates
    if tried:
        members = tuple([one for one in members if one not in tried])
        if not members:
            return None
        candidates = [one.candidate for one in members]
    if len(members) == 1:
        return members[0]
    found = None
    if hits is not None:
        found = [hits.get(one.index, NO_HIT) for one in members] if hits else [NO_HIT] * len(members)
    group.turn += 1
    at = picker.pick(
        context.policy,
        candidates,
        found,
        shape,
        rho=context.utilisation.rho,
        weights=context.weights,
        turn=group.turn,
    )
    return members[at]
