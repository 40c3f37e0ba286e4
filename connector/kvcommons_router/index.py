"""Where the KV of a text is, as the exchange asks for it; and the index of a router that has no Redis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kvcommons_router.usage import usage_of

if TYPE_CHECKING:
    from kvcommons_router.app import App
    from kvcommons_router.exchange import Exchange
    from kvcommons_router.fleet import Instance


class Depth(NamedTuple):
    """How many leading text steps an instance finds: in its own cache, then also on its node, on disk, at any peer."""

    engine: int
    memory: int
    disk: int
    peer: int


Depths = Mapping[int, Depth]


class Index(Protocol):
    """What the router knows of who holds what."""

    async def start(self) -> None:
        """Begins; it need not be there yet."""

    async def close(self) -> None:
        """Ends."""

    def locate(self, exchange: Exchange) -> None:
        """Calls `exchange.located`, now or within a few milliseconds."""

    def dispatched(self, exchange: Exchange, instance: Instance) -> None:
        """Records that an instance will hold this text."""

    def failed(self, exchange: Exchange, instance: Instance) -> None:
        """Takes back what was recorded at dispatch: the instance did not begin to answer."""

    def revived(self, instance: Instance) -> None:
        """An instance that was down serves again, and has likely forgotten everything."""

    def observe(self) -> None:
        """Shows how it is in the metrics; called about once a second."""

    def answered(self, exchange: Exchange, instance: Instance) -> None:
        """Takes what a complete answer says about reuse."""


class OwnMemory:
    """Only what this process sent: good for one router of one worker, and for a start without Redis."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._masks: dict[int, int] = {}
        self._entries_max = app.index_settings.mirror_keys_max

    async def start(self) -> None:
        """Nothing to begin."""

    async def close(self) -> None:
        """Nothing to end."""

    def locate(self, exchange: Exchange) -> None:
        """Answers at once; of several workers none knows enough, so they choose by hash."""
        app = self._app
        app.recorder.count(app.layout.lookups)
        known = app.settings.workers == 1
        exchange.located(depths_of_masks(exchange.text_keys, self._masks.get) if known else None)

    def dispatched(self, exchange: Exchange, instance: Instance) -> None:
        """Remembers; the oldest texts are forgotten first."""
        masks, bit = self._masks, 1 << instance.index
        for key in exchange.text_keys:
            masks[key] = masks.pop(key, 0) | bit
        if (
            len(masks) > self._entries_max
        ):  # many at once: to find a dict's first key takes as long as keys went before it
            for key in list(itertools.islice(masks, self._entries_max // 16 + 1)):
                del masks[key]

    def failed(self, exchange: Exchange, instance: Instance) -> None:
        """Forgets what the instance did not do."""
        depth = exchange.depth
        for key in exchange.text_keys[depth.engine if depth is not None else 0 :]:
            self._masks[key] = self._masks.get(key, 0) & ~(1 << instance.index)

    def revived(self, instance: Instance) -> None:
        """Forgets what it held."""
        gone = ~(1 << instance.index)
        self._masks = {key: left for key, mask in self._masks.items() if (left := mask & gone)}

    def observe(self) -> None:
        """Shows its size."""
        self._app.recorder.row[self._app.layout.mirror_entries] = len(self._masks)

    def answered(self, exchange: Exchange, instance: Instance) -> None:
        """Learns how many bytes make a token."""
        usage = usage_of(exchange.tail)
        if usage is not None:
            exchange.group.ratio.add(exchange.text_bytes, usage.prompt_tokens)


def depths_of_masks(keys: Sequence[int], mask_of: Callable[[int, int], int]) -> dict[int, Depth]:
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
