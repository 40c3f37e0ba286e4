"""What became of chunks that are here no more, and what else is known of those that were not found. Bounded, and gone with the daemon.

Each chunk that a request missed gets the first of these that holds:

1. Peers had it, as the index says, and it did not come: the peer is avoided, it is too slow, or it failed.
2. It was here, and was let go of: evicted or cleared, when, and how old it was then.
3. Its text is cached for another model (another fingerprint), or another tenant sent it.
4. It was never stored, as far as is remembered.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from kvcommons_node.key_table import KeyTable

ROWS_LOG2: Final = 17
"""Of the ends of chunks that are remembered, and of the texts: of the last 65,536 of each nearly all are there."""
FINGERPRINTS_MAX: Final = (1 << 16) - 1
"""Whose texts are told apart; those of further ones are not noted."""
ASKED_MAX: Final = 8_192
KEY_BYTES: Final = 8
"""Of a key: what the index and the reports name it by."""

EXPLANATIONS: Final[dict[str, str]] = {
    "node_gone": "the index named other nodes, and they do not answer: they are down, or the port between nodes is closed",
    "peer_slow": "other nodes had it, and to compute it was quicker than to fetch it",
    "peer_failed": "other nodes had it as the index says, but did not hand it over: evicted there meanwhile, or the transfer failed",
    "evicted": "it was here and made room for others: more memory or a disk would have kept it",
    "cleared": "it was here and was cleared by a call",
    "other_fingerprint": "this text is cached, but for another model, another format of KV or other weights",
    "other_tenant": "another tenant sent this text: tenants share nothing",
    "never_stored": "nothing is known of it: it is new, was computed on a node that did not tell, or is older than what is remembered",
}


class Gone(NamedTuple):
    """How a chunk ended."""

    at: float
    why: str
    age_seconds: float


class Ends:
    """How chunks ended, by the first bytes of their keys."""

    _WORDS: Final = ("evicted", "cleared")

    def __init__(self, rows_log2: int) -> None:
        self._table = KeyTable(rows_log2)
        self._at = array("d", bytes(8 << rows_log2))
        self._age_seconds = array("f", bytes(4 << rows_log2))
        self._why = array("B", bytes(1 << rows_log2))

    def put(self, key: int, end: Gone) -> None:
        row, _ = self._table.place(key)
        self._at[row], self._age_seconds[row], self._why[row] = end.at, end.age_seconds, self._WORDS.index(end.why)

    def get(self, key: int) -> Gone | None:
        row = self._table.find(key)
        return None if row is None else Gone(self._at[row], self._WORDS[self._why[row]], self._age_seconds[row])


class Texts:
    """For which models a text is cached: the numbers of the last four fingerprints, 16 bits each."""

    def __init__(self, rows_log2: int) -> None:
        self._table = KeyTable(rows_log2)
        self._models = array("Q", bytes(8 << rows_log2))
        self._numbers: dict[bytes, int] = {}

    def note(self, text: int, fingerprint: bytes) -> None:
        number = self._numbers.get(fingerprint)
        if number is None:
            if len(self._numbers) >= FINGERPRINTS_MAX:
                return
            number = self._numbers[fingerprint] = len(self._numbers) + 1
        row, known = self._table.place(text)
        models = self._models[row] if known else 0
        if number not in _quarters(models):
            models = (models << 16 | number) & (1 << 64) - 1
        self._models[row] = models

    def for_others(self, text: int, fingerprint: bytes) -> bool:
        """Whether another model has it."""
        row = self._table.find(text)
        own = self._numbers.get(fingerprint, 0)
        return row is not None and any(number not in (0, own) for number in _quarters(self._models[row]))


def _quarters(models: int) -> tuple[int, int, int, int]:
    return models & 0xFFFF, models >> 16 & 0xFFFF, models >> 32 & 0xFFFF, models >> 48


class Asked(NamedTuple):
    """Peers that may have a chain, when the index was asked, and what had gone wrong with peers till then."""

    at: float
    peers: tuple[str, ...]
    slow: int


class Verdict(NamedTuple):
    """Why a chunk was not found."""

    why: str
    seconds_ago: float | None = None
    """When it was let go of."""
    age_seconds: float | None = None
    """How old it was then."""
    peers: tuple[str, ...] = ()


class Sights(NamedTuple):
    """How it stands with the peers."""

    slow: int
    """Fetches that were not begun because to compute is quicker, since the start."""
    unusable: frozenset[str]
    """Who is not asked for a while."""


Seen = Callable[[], Sights]


def no_peers() -> Sights:
    """A node alone."""
    return Sights(0, frozenset())


class History:
    """One per daemon, on its event loop."""

    def __init__(
        self, sights: Seen = no_peers, clock: Callable[[], float] = time.monotonic, rows_log2: int = ROWS_LOG2
    ) -> None:
        self._sights = sights
        self._clock = clock
        self._ends = Ends(rows_log2)
        self._texts = Texts(rows_log2)
        self._asked: dict[bytes, Asked] = {}

    def committed(self, fingerprint: bytes, text_keys: Sequence[int]) -> None:
        """A chunk was stored, with the text that it stands for."""
        for text in text_keys:
            self._texts.note(text, fingerprint)

    def gone(self, key: bytes, why: str, age_ms: int) -> None:
        """A chunk is nowhere on this node any more. :param why: evicted or cleared."""
        self._ends.put(_number(key[:KEY_BYTES]), Gone(self._clock(), why, age_ms / 1_000))

    def asked(self, keys8: Sequence[bytes], depths: Mapping[str, int]) -> None:
        """The index was asked who has a chain. :param depths: leading chunks of it, by peer."""
        now, slow = self._clock(), self._sights().slow
        for number, key8 in enumerate(keys8[: max(depths.values(), default=0)]):
            peers = tuple(sorted(name for name, depth in depths.items() if depth > number))
            self._asked.pop(key8, None)
            if len(self._asked) >= ASKED_MAX:
                self._asked.pop(next(iter(self._asked)))
            self._asked[key8] = Asked(now, peers, slow)

    def why(self, key8: bytes, text: int | None, fingerprint: bytes, other_tenant: bool) -> Verdict:
        """Of a chunk that a request did not find a moment ago."""
        asked, gone = self._asked.pop(key8, None), self._ends.get(_number(key8))
        if asked is not None and (gone is None or gone.at < asked.at):  # else it came from there, and was evicted since
            sights = self._sights()
            if sights.unusable.issuperset(asked.peers):
                return Verdict("node_gone", peers=asked.peers)
            return Verdict("peer_slow" if sights.slow > asked.slow else "peer_failed", peers=asked.peers)
        if gone is not None:
            return Verdict(gone.why, max(0.0, self._clock() - gone.at), gone.age_seconds)
        if text is not None and self._texts.for_others(text, fingerprint):
            return Verdict("other_fingerprint")
        return Verdict("other_tenant" if other_tenant else "never_stored")


def _number(key8: bytes) -> int:
    return int.from_bytes(key8, "little")
