"""Where the KV of a text is, as an exchange asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from kvcommons_router.fleet import Group, Instance
from kvcommons_router.picker import NO_HIT, Hit


class Depth(NamedTuple):
    """How many leading text steps an instance finds: in its own cache, then also on its node, on disk, at any peer."""

    engine: int
    memory: int
    disk: int
    peer: int


Depths = Mapping[int, Depth]


class Inquiry:
    """What an index reads of a request, and what it keeps with it."""

    request_id = ""
    keys8: Sequence[bytes] = ()  # the text keys, as the index names them
    text_bytes = 0
    depth: Depth | None = None  # of the instance that was chosen
    hit: Hit = NO_HIT
    intended: Sequence[bytes] = ()  # recorded at dispatch

    def __init__(self, group: Group) -> None:
        self.group = group

    @property
    def tail(self) -> bytes:
        """The end of the answer, where the usage is."""
        raise NotImplementedError

    def located(self, depths: Depths | None) -> None:
        """The index has answered (None: it can't)."""
        raise NotImplementedError


class Index(Protocol):
    """What the router knows of who holds what."""

    async def start(self) -> None:
        """Begins; it need not be there yet."""

    async def close(self) -> None:
        """Ends."""

    def locate(self, inquiry: Inquiry) -> None:
        """Calls `inquiry.located`, now or within a few milliseconds."""

    def dispatched(self, inquiry: Inquiry, instance: Instance) -> None:
        """Records that an instance will hold this text."""

    def failed(self, inquiry: Inquiry, instance: Instance) -> None:
        """Takes back what was recorded at dispatch: the instance did not begin to answer."""

    def revived(self, instance: Instance, reason: str = "was_down") -> None:
        """An instance was started anew, or was down and serves again: it has likely forgotten everything."""

    def follow(self, gone: Sequence[Instance]) -> None:
        """The fleet is another now; these are no longer of it."""

    def observe(self) -> None:
        """Shows how it is in the metrics; called about once a second."""

    def answered(self, inquiry: Inquiry, instance: Instance) -> None:
        """Takes what a complete answer says about reuse."""
