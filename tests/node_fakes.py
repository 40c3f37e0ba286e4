"""A fake of the native core and of the index link, at the seams that the daemon has for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvcommons_node.api.models import IndexStatus
from kvcommons_node.remote.driver import Port
from kvcommons_node.seam import KnownFingerprint, KnownLayout, KnownPeer, KnownShard, KnownTier, RawEvent

FINGERPRINT = bytes(range(32))


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def committed(number: int, text_keys: tuple[int, ...] = ()) -> RawEvent:
    return ("committed", key(number), FINGERPRINT, text_keys, "", 0, "")


def freed(number: int, age_ms: int = 1_500, tier: str = "") -> RawEvent:
    return ("freed", key(number), FINGERPRINT, (), "", age_ms, tier)


def moved(number: int, tier: str) -> RawEvent:
    return ("moved", key(number), FINGERPRINT, (), "", 0, tier)


def feedback(report: str, fingerprint: bytes = FINGERPRINT) -> RawEvent:
    return ("feedback", b"", fingerprint, (), report, 0, "")


@dataclass(frozen=True)
class FakeStart:
    """A node as it was started, for what asks for another size."""

    state_directory: Path
    arena_bytes: int = 64 << 20
    configured_bytes: int = 64 << 20
    holder_socket: Path | None = Path("/x.hold")
    huge_pages: bool = False


class FakeCore:
    """Holds chunks in a dict and events in a ring; its event descriptor is a real eventfd."""

    def __init__(self, start_error: Exception | None = None) -> None:
        self.chunks: dict[bytes, tuple[bytes, tuple[int, ...]]] = {}
        self.pinned: set[bytes] = set()
        self.cleared: list[tuple[bytes | None, int | None, bytes, int, tuple[str, ...]]] = []
        """What it was asked to clear: fingerprint, tenant, keys, age, places."""
        self.events: deque[RawEvent] = deque()
        self.gap = False
        self.adopted = False
        self.arena_id = bytes(16)
        self.notes: list[str] = []
        self.remarks: list[str] = []
        self.behind: list[tuple[bytes, bytes, tuple[int, ...], str]] = []
        self.known_tiers: list[KnownTier] = []
        self.carries_max = 1 << 30
        """Chunks that arrive at one time when some are moved."""
        self.known_peers: list[KnownPeer] = []
        self.told_peers: list[tuple[int, int, str, str, int]] = []
        self.told_epoch: int | None = None
        self.questions: list[tuple[int, bytes, bytes]] = []
        self.peer_answers: dict[int, list[tuple[int, int, int]]] = {}
        self.layout: KnownLayout = (256, 7, [((0, 2, 0, 4), 4_096)])
        self.elsewhere: dict[str, dict[bytes, tuple[bytes, tuple[int, ...]]]] = {}
        """Chunks that peers have, by their name."""
        self.brought_as: list[tuple[str, int, int, list[KnownShard]]] = []
        self.recode_errors: list[Exception] = []
        """What the next starts raise."""
        self.recode_says: dict[str, int | str] = {"state": "done", "why": ""}
        self.recoded: list[tuple[str, bytes | None, bytes, str, bool]] = []
        self.recode_cancelled: list[int] = []
        self.running = False
        self._start_error = start_error
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def start(self) -> None:
        if self._start_error is not None:
            raise self._start_error
        self.running = True

    def stop(self) -> None:
        self.running = False
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1

    def event_fd(self) -> int:
        return self._event_fd

    def emit(self, *events: RawEvent, gap: bool = False) -> None:
        for event in events:
            if event[0] == "committed":
                self.chunks[event[1]] = (event[2], event[3])
            elif event[0] == "freed":
                self.chunks.pop(event[1], None)
        self.events.extend(events)
        self.gap = self.gap or gap
        os.eventfd_write(self._event_fd, 1)

    def drain_events(self, events_max: int) -> tuple[list[RawEvent], bool]:
        taken = [self.events.popleft() for _ in range(min(events_max, len(self.events)))]
        gap, self.gap = self.gap, False
        if not self.events:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event_fd)
        return taken, gap

    def inventory(self, cursor: int, items_max: int) -> tuple[list[tuple[bytes, bytes, tuple[int, ...]]], int]:
        every = [(name, fingerprint, texts) for name, (fingerprint, texts) in self.chunks.items()]
        page = every[cursor : cursor + items_max]
        following = cursor + len(page)
        return page, following if following < len(every) else 0

    def tier_inventory(
        self, cursor: int, items_max: int
    ) -> tuple[list[tuple[bytes, bytes, tuple[int, ...], str]], int]:
        page = self.behind[cursor : cursor + items_max]
        following = cursor + len(page)
        return page, following if following < len(self.behind) else 0

    def tiers(self) -> list[KnownTier]:
        return self.known_tiers

    def set_peers(self, members: list[tuple[int, int, str, str, int]]) -> None:
        self.told_peers = members

    def set_peer_epoch(self, epoch: int | None) -> None:
        self.told_epoch = epoch

    def peer_questions(self, questions_max: int) -> list[tuple[int, bytes, bytes]]:
        asked, self.questions = self.questions[:questions_max], self.questions[questions_max:]
        return asked

    def peer_answer(self, question: int, candidates: list[tuple[int, int, int]]) -> None:
        self.peer_answers[question] = candidates

    def peers(self) -> list[KnownPeer]:
        return self.known_peers

    def remote_ports(self) -> list[Port]:
        return []

    def stats(self) -> dict[str, int]:
        return {
            "arena_bytes": 1 << 30,
            "used_bytes": 4_096,
            "chunks": len(self.chunks),
            "pinned_chunks": len(self.pinned),
            "slots_sealed": 3,
            "lookups": 7,
        }

    def fingerprints(self) -> list[KnownFingerprint]:
        counted: dict[bytes, int] = {}
        for fingerprint, _ in self.chunks.values():
            counted[fingerprint] = counted.get(fingerprint, 0) + 1
        return [(fingerprint, chunks, 4_096 * chunks, []) for fingerprint, chunks in counted.items()]

    def lookup(self, fingerprint: bytes, keys: bytes) -> int:
        hits = 0
        for start in range(0, len(keys), 32):
            held = self.chunks.get(keys[start : start + 32])
            if held is None or held[0] != fingerprint:
                break
            hits += 1
        return hits

    def pin(self, keys: bytes, pinned: bool) -> int:
        found = {keys[start : start + 32] for start in range(0, len(keys), 32)} & self.chunks.keys()
        self.pinned = self.pinned | found if pinned else self.pinned - found
        return len(found)

    def places(self, fingerprint: bytes, keys: bytes) -> tuple[list[str], bytes]:
        names = ["memory", *(tier[0] for tier in self.known_tiers)]
        split = [keys[start : start + 32] for start in range(0, len(keys), 32)]
        bits = []
        for one in split:
            here = 1 if self.chunks.get(one, (b"",))[0] == fingerprint else 0
            for at, name in enumerate(names[1:], 1):
                here |= (any(item[0] == one and item[3] == name for item in self.behind)) << at
            bits.append(here)
        return names, bytes(bits)

    def write_behind(self, fingerprint: bytes, keys: bytes) -> int:
        split = [keys[start : start + 32] for start in range(0, len(keys), 32)]
        fresh = [one for one in split if one in self.chunks][: self.carries_max]
        self.behind += [(one, fingerprint, (), "disk") for one in fresh]
        return len(fresh)

    def bring(self, fingerprint: bytes, keys: bytes) -> int:
        split = [keys[start : start + 32] for start in range(0, len(keys), 32)]
        fresh = [one for one in split if one in {item[0] for item in self.behind}][: self.carries_max]
        self.chunks |= dict.fromkeys(fresh, (fingerprint, ()))
        return len(fresh)

    def layout_of(self, fingerprint: bytes, key: bytes) -> KnownLayout | None:
        held = self.chunks.get(key)
        return self.layout if held is not None and held[0] == fingerprint else None

    def bring_from(
        self, peer: str, fingerprint: bytes, keys: bytes, chunk_tokens: int, tenant: int, shards: Sequence[KnownShard]
    ) -> int:
        self.brought_as.append((peer, chunk_tokens, tenant, [*shards]))
        split = [keys[start : start + 32] for start in range(0, len(keys), 32)]
        there = {name for name, held in self.elsewhere.get(peer, {}).items() if held[0] == fingerprint}
        fresh = [one for one in split if one in there and one not in self.chunks][: self.carries_max]
        self.chunks |= dict.fromkeys(fresh, (fingerprint, ()))
        return len(fresh)

    def recode_start(
        self,
        *,
        codec: str,
        fingerprint: bytes | None = None,
        keys: bytes = b"",
        tier: str = "",
        from_memory: bool = True,
        bytes_per_second_max: int = 0,
    ) -> int:
        if self.recode_errors:
            raise self.recode_errors.pop(0)
        self.recoded.append((codec, fingerprint, keys, tier, from_memory))
        return len(self.recoded)

    def recode_progress(self, run: int) -> dict[str, int | str] | None:
        names = ("offered", "rewritten", "unchanged", "refused", "gone", "failed", "bytes_before", "bytes_after")
        return {**dict.fromkeys(names, 0), "shards_total": 4, "shards_seen": 4, "rewritten": 3, **self.recode_says}

    def recode_cancel(self, run: int) -> bool:
        self.recode_cancelled.append(run)
        return True

    def let_go(self, fingerprint: bytes, keys: bytes) -> int:
        return self.clear_some(fingerprint, None, keys, 0, [])[0]

    def remove_behind(self, tier: str, fingerprint: bytes, keys: bytes) -> int:
        before = len(self.behind)
        named = {keys[start : start + 32] for start in range(0, len(keys), 32)}
        self.behind = [item for item in self.behind if item[0] not in named or item[3] != tier]
        return before - len(self.behind)

    def clear_some(
        self, fingerprint: bytes | None, tenant: int | None, keys: bytes, age_ms_min: int, places: Sequence[str]
    ) -> tuple[int, dict[str, int]]:
        self.cleared.append((fingerprint, tenant, keys, age_ms_min, tuple(places)))
        named = {keys[start : start + 32] for start in range(0, len(keys), 32)}
        gone = [
            name
            for name, held in self.chunks.items()
            if fingerprint in (None, held[0]) and (not named or name in named) and "memory" in (places or ["memory"])
        ]
        for name in gone:
            del self.chunks[name]
            self.pinned.discard(name)
        return len(gone), {tier[0]: 0 for tier in self.known_tiers}


class FakeIndex:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.heard = asyncio.Event()
        self.state: IndexStatus = IndexStatus(state="connected", detail="member 1", slot=1, epoch=5)
        self.joined = False

    async def start(self) -> None:
        self.joined = True

    async def stop(self) -> None:
        self.joined = False

    def committed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None:
        self._hear(("committed", (key, text_keys)))

    def freed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None:
        self._hear(("freed", key))

    def placed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...], tier: str) -> None:
        self._hear(("placed", (key, tier)))

    def feedback(self, report: str) -> None:
        self._hear(("feedback", report))

    async def fence_members(self, members: list[str], reason: str) -> list[str]:
        self._hear(("fence", (tuple(members), reason)))
        return [name for name in members if not name.startswith("unknown")]

    async def hold(self) -> None:
        self._hear(("hold", None))
        self.state = self.state.model_copy(update={"held": True})

    def release(self) -> None:
        self._hear(("release", None))
        self.state = self.state.model_copy(update={"held": False})

    def begin_epoch(self, reason: str) -> None:
        self._hear(("epoch", reason))

    def status(self) -> IndexStatus:
        return self.state

    def _hear(self, what: tuple[str, object]) -> None:
        self.told.append(what)
        self.heard.set()
