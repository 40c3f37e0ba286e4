"""What became of chunks that are here no more, and what else is known of those that were not found. Bounded, and gone with the daemon.

Each chunk that a request missed gets the first of these that holds:

1. Peers had it, as the index says, and it did not come: the peer is avoided, it is too slow, or it failed.
2. It was here, and was let go of: evicted or cleared, when, and how old it was then.
3. Its text is cached for another model (another fingerprint), or another tenant sent it.
4. It was never stored, as far as is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")

GONE_MAX: Final = 65_536
TEXTS_MAX: Final = 65_536
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

    def __init__(self, sights: Seen = no_peers, clock: Callable[[], float] = time.monotonic) -> None:
        self._sights = sights
        self._clock = clock
        self._gone: dict[bytes, Gone] = {}
        self._texts: dict[int, tuple[bytes, ...]] = {}
        self._asked: dict[bytes, Asked] = {}

    def committed(self, fingerprint: bytes, text_keys: Sequence[int]) -> None:
        """A chunk was stored, with the text that it stands for."""
        for text in text_keys:
            known = self._texts.pop(text, ())
            if fingerprint not in known:
                known = (*known[-3:], fingerprint)
            _put(self._texts, text, known, TEXTS_MAX)

    def gone(self, key: bytes, why: str, age_ms: int) -> None:
        """A chunk is nowhere on this node any more. :param why: evicted or cleared."""
        key8 = key[:KEY_BYTES]
        self._gone.pop(key8, None)
        _put(self._gone, key8, Gone(self._clock(), why, age_ms / 1_000), GONE_MAX)

    def asked(self, keys8: Sequence[bytes], depths: Mapping[str, int]) -> None:
        """The index was asked who has a chain. :param depths: leading chunks of it, by peer."""
        now, slow = self._clock(), self._sights().slow
        for number, key8 in enumerate(keys8[: max(depths.values(), default=0)]):
            peers = tuple(sorted(name for name, depth in depths.items() if depth > number))
            self._asked.pop(key8, None)
            _put(self._asked, key8, Asked(now, peers, slow), ASKED_MAX)

    def why(self, key8: bytes, text: int | None, fingerprint: bytes, other_tenant: bool) -> Verdict:
        """Of a chunk that a request did not find a moment ago."""
        asked, gone = self._asked.pop(key8, None), self._gone.get(key8)
        if asked is not None and (gone is None or gone.at < asked.at):  # else it came from there, and was evicted since
            sights = self._sights()
            if sights.unusable.issuperset(asked.peers):
                return Verdict("node_gone", peers=asked.peers)
            return Verdict("peer_slow" if sights.slow > asked.slow else "peer_failed", peers=asked.peers)
        if gone is not None:
            return Verdict(gone.why, max(0.0, self._clock() - gone.at), gone.age_seconds)
        if text is not None and any(known != fingerprint for known in self._texts.get(text, ())):
            return Verdict("other_fingerprint")
        return Verdict("other_tenant" if other_tenant else "never_stored")


def _put(known: dict[K, V], key: K, value: V, count_max: int) -> None:
    """The oldest makes room."""
    if len(known) >= count_max:
        known.pop(next(iter(known)))
    known[key] = value
