"""Where the KV of a text is, as an exchange asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from kvcommons_core.index.schema import Member

from kvcommons_router.fleet import Group, Instance
from kvcommons_router.picker import NO_HIT, Hit
from kvcommons_router.tracing import Attempt


class Depth(NamedTuple):
    """How many leading text steps an instance finds: in its own cache, then also on its node, on disk, at any peer."""

    engine: int
    memory: int
    disk: int
    peer: int


Depths = Mapping[int, Depth]


class Inquiry:
    """What an index reads of a request, and what it keeps with it."""

    __slots__ = ("depth", "group", "hit", "id_bytes", "intended", "keys8", "span", "tail", "text_bytes")

    def __init__(self, group: Group, id_bytes: bytes) -> None:
        self.group = group
        self.id_bytes = id_bytes
        self.keys8: Sequence[bytes] = ()  # the text keys, as the index names them
        self.text_bytes = 0
        self.depth: Depth | None = None  # of the instance that was chosen
        self.hit: Hit = NO_HIT
        self.intended: Sequence[bytes] = ()  # recorded at dispatch
        self.span: Attempt | None = None  # the attempt under way, where it is traced
        self.tail = b""  # the end of the answer, where the usage is

    @property
    def tenant_name(self) -> str:
        """Whose it is."""
        return ""

    @property
    def request_id(self) -> str:
        """What the request is called everywhere."""
        return self.id_bytes.decode("ascii")

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

    def account(self, request_id: str, tenant: str) -> dict[str, object] | None:
        """What was expected of a request and what came of it, where this worker remembers it as this tenant's."""

    def accounts(self, tenant: str, count_max: int) -> list[dict[str, object]]:
        """The same of the tenant's last requests that are over, newest first."""

    def members(self) -> Sequence[Member]:
        """Who belongs to the pool, by the index."""
