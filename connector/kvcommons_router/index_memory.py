"""The index of a router that has no Redis: what this process sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from kvcommons_core.index.schema import Member

from kvcommons_router.context import Context
from kvcommons_router.fleet import Instance
from kvcommons_router.index import Depth, Inquiry
from kvcommons_router.usage import usage_of


class OwnMemory:
    """Only what this process sent: good for one router of one worker, and for a start without Redis."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._masks: dict[bytes, int] = {}
        self._entries_max = context.index_settings.mirror_keys_max

    async def start(self) -> None:
        """Nothing to begin."""

    async def close(self) -> None:
        """Nothing to end."""

    def locate(self, inquiry: Inquiry) -> None:
        """Answers at once; of several workers none knows enough, so they choose by hash."""
        context = self._context
        context.recorder.count(context.layout.lookups)
        known = context.settings.workers == 1
        inquiry.located(depths_of_masks(inquiry.keys8, self._masks.get) if known else None)

    def dispatched(self, inquiry: Inquiry, instance: Instance) -> None:
        """Remembers; the oldest texts are forgotten first."""
        masks, bit = self._masks, 1 << instance.index
        for key in inquiry.keys8:
            masks[key] = masks.pop(key, 0) | bit
        if (
            len(masks) > self._entries_max
        ):  # many at once: to find a dict's first key takes as long as keys went before it
            for key in list(itertools.islice(masks, self._entries_max // 16 + 1)):
                del masks[key]

    def failed(self, inquiry: Inquiry, instance: Instance) -> None:
        """Forgets what the instance did not do."""
        depth = inquiry.depth
        for key in inquiry.keys8[depth.engine if depth is not None else 0 :]:
            self._masks[key] = self._masks.get(key, 0) & ~(1 << instance.index)

    def revived(self, instance: Instance, reason: str = "was_down") -> None:
        """Forgets what it held."""
        self.follow((instance,))

    def follow(self, gone: Sequence[Instance]) -> None:
        """Forgets what these held: their bits may be others' soon."""
        if not gone or not self._masks:
            return
        kept = ~sum(1 << instance.index for instance in gone)
        self._masks = {key: left for key, mask in self._masks.items() if (left := mask & kept)}

    def observe(self) -> None:
        """Shows its size."""
        self._context.recorder.row[self._context.layout.mirror_entries] = len(self._masks)

    def answered(self, inquiry: Inquiry, instance: Instance) -> None:
        """Learns how many bytes make a token."""
        usage = usage_of(inquiry.tail)
        if usage is not None:
            inquiry.group.ratio.add(inquiry.text_bytes, usage.prompt_tokens)

    def account(self, request_id: str, tenant: str) -> dict[str, object] | None:
        """Nobody reports to a router without Redis."""
        return None

    def accounts(self, tenant: str, count_max: int) -> list[dict[str, object]]:
        """None, likewise."""
        return []

    def members(self) -> Sequence[Member]:
        """Nobody: there is no pool."""
        return ()


def depths_of_masks(keys: Sequence[bytes], mask_of: Callable[[bytes, int], int]) -> dict[int, Depth]:
    """The depth of every instance that holds a beginning of the text, by the bit of its index."""
    found: dict[int, Depth] = {}
    if not keys:
        return found
    alive = mask_of(keys[0], 0)
    depth = 1
    for key in keys[1:]:
        if not alive:
            return found
        still = alive & mask_of(key, 0)
        if still != alive:
            _found(found, alive ^ still, depth)
            alive = still
        depth += 1
    _found(found, alive, depth)
    return found


def _found(found: dict[int, Depth], bits: int, depth: int) -> None:
    while bits:
        low = bits & -bits
        found[low.bit_length() - 1] = Depth(depth, depth, depth, depth)
        bits ^= low
