"""What the daemon needs of the native core, as a type: tests put a fake here, nothing else knows which one it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvcommons_node.remote.driver import Port

MEMORY = "memory"
"""How the core calls the tier that engines read from."""
EVENTS_PER_DRAIN_MAX = 4_096
INVENTORY_PAGE_ITEMS_MAX = 2_048


class CoreEvent(NamedTuple):
    """One entry of the core's ordered event ring."""

    kind: str
    """committed, freed, moved, feedback, session_opened or session_closed."""
    key: bytes
    fingerprint: bytes
    text_keys: tuple[int, ...]
    json: str
    age_ms: int
    """Of a freed chunk: the time since its commit."""
    tier: str = ""
    """Of a node with tiers: where the chunk is by now, "memory" or a tier's name; empty for nowhere."""


RawEvent = tuple[str, bytes, bytes, tuple[int, ...], str, int, str]

InventoryPage = tuple[list[tuple[bytes, bytes, tuple[int, ...]]], int]
"""Keys with their fingerprints and text keys, and the cursor of the next page (0: the end)."""

KnownFingerprint = tuple[bytes, int, int, list[int]]
"""A fingerprint, its chunks, the bytes of the arena that they take, and the pids of the processes with a session."""


KnownTier = tuple[str, str, str, dict[str, int]]
"""A tier's name, its health (serving, degraded, gone), why in words, and its counters."""


KnownPeer = tuple[str, str, int, bool, str, dict[str, int]]
"""A peer's name, IP address and port, whether it is asked now, why not, and its counters."""


KnownShard = tuple[tuple[int, int, int, int], int]
"""First and end layer, first and end head, and the bytes of a slot."""

KnownLayout = tuple[int, int, list[KnownShard]]
"""How a chunk is kept: its tokens, its tenant's number, its shards."""


class RecodeCore(Protocol):
    """The part of ``kvcommons_core._native.NodeCore`` that changes the form in which a tier keeps chunks."""

    def recode_start(
        self,
        *,
        codec: str,
        fingerprint: bytes | None = ...,
        keys: bytes = ...,
        tier: str = ...,
        from_memory: bool = ...,
        bytes_per_second_max: int = ...,
    ) -> int: ...
    def recode_progress(self, run: int) -> dict[str, int | str] | None: ...
    def recode_cancel(self, run: int) -> bool: ...


class Core(RecodeCore, Protocol):
    """The part of ``kvcommons_core._native.NodeCore`` that the daemon uses."""

    @property
    def adopted(self) -> bool: ...
    @property
    def arena_id(self) -> bytes: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def remarks(self) -> list[str]: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def event_fd(self) -> int: ...
    def drain_events(self, events_max: int) -> tuple[list[RawEvent], bool]: ...
    def inventory(self, cursor: int, items_max: int) -> InventoryPage: ...
    def tier_inventory(
        self, cursor: int, items_max: int
    ) -> tuple[list[tuple[bytes, bytes, tuple[int, ...], str]], int]: ...
    def tiers(self) -> list[KnownTier]: ...
    def remote_ports(self) -> Sequence[Port]: ...
    def stats(self) -> dict[str, int]: ...
    def set_peers(self, members: list[tuple[int, int, str, str, int]]) -> None: ...
    def set_peer_epoch(self, epoch: int | None) -> None: ...
    def peer_questions(self, questions_max: int) -> list[tuple[int, bytes, bytes]]: ...
    def peer_answer(self, question: int, candidates: list[tuple[int, int, int]]) -> None: ...
    def peers(self) -> list[KnownPeer]: ...
    def fingerprints(self) -> list[KnownFingerprint]: ...
    def lookup(self, fingerprint: bytes, keys: bytes) -> int: ...
    def pin(self, keys: bytes, pinned: bool) -> int: ...
    def places(self, fingerprint: bytes, keys: bytes) -> tuple[list[str], bytes]:
        """The names of the places, memory first, and one byte for each key: bit i says that it is in place i."""
        ...

    def write_behind(self, fingerprint: bytes, keys: bytes) -> int: ...
    def bring(self, fingerprint: bytes, keys: bytes) -> int: ...
    def layout_of(self, fingerprint: bytes, key: bytes) -> KnownLayout | None: ...
    def bring_from(
        self, peer: str, fingerprint: bytes, keys: bytes, chunk_tokens: int, tenant: int, shards: Sequence[KnownShard]
    ) -> int: ...
    def let_go(self, fingerprint: bytes, keys: bytes) -> int: ...
    def remove_behind(self, tier: str, fingerprint: bytes, keys: bytes) -> int: ...
    def clear_some(
        self,
        fingerprint: bytes | None,
        tenant: int | None,
        keys: bytes,
        age_ms_min: int,
        places: Sequence[str],
    ) -> tuple[int, dict[str, int]]:
        """None or empty means any. Returns the chunks that memory had, and the shards that each tier had."""
        ...


class ChainKeys(Protocol):
    """``kvcommons_core._native.chain_keys``: the token keys of every whole chunk, concatenated."""

    def __call__(self, root: bytes, tokens: object, chunk_tokens: int) -> bytes: ...
