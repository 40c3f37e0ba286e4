"""Counters of the connector. They cross processes as one flat dict, so that engines can add them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# name -> help. A name with a label is written name|label=value. Times are in seconds, sizes in bytes.
COUNTERS: Final[dict[str, str]] = {
    "requests": "Requests that ended, by the reason why less than all of the prompt was reused (empty: all was).",
    "prompt_tokens": "Prompt tokens of the requests that ended.",
    "own_tokens": "Prompt tokens that the engine's own prefix cache held.",
    "commons_tokens": "Prompt tokens whose KV came from the commons.",
    "computed_tokens": "Prompt tokens that were computed.",
    "lookups": "Questions to the node, by status.",
    "lookup_seconds": "Time spent in questions to the node.",
    "lookup_chunks": "Chunks asked for.",
    "lookup_hit_chunks": "Chunks that the node had in memory.",
    "load_tokens": "Tokens handed to the workers to load, resumed requests included.",
    "load_failures": "Loads that failed and were recomputed.",
    "loads_refused": "Loads that were refused, late or unsound, by reason.",
    "load_bytes": "Bytes copied into the engine, by all ranks.",
    "load_seconds": "Time the copies into the engine took.",
    "store_chunks": "Chunks committed to the node, by all ranks.",
    "store_bytes": "Bytes copied out of the engine, by all ranks.",
    "store_seconds": "Time the copies out of the engine took.",
    "stores_dropped": "Stores that were given up, by reason.",
    "attaches": "Times that a process of this engine attached to a node.",
}

# The label of those that have one.
LABELS: Final = {"requests": "reason", "lookups": "status", "loads_refused": "reason", "stores_dropped": "reason"}


class Counters:
    """Increments since the last take."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter of COUNTERS, with at most one label."""
        if value:
            key = name + "".join(f"|{label}={text}" for label, text in labels.items())
            self._values[key] = self._values.get(key, 0) + value

    def request(self, reason: str, prompt: int, own: int, commons: int, computed: int) -> None:
        """One request has ended."""
        self.add("requests", 1, reason=reason)
        self.add("prompt_tokens", prompt)
        self.add("own_tokens", own)
        self.add("commons_tokens", commons)
        self.add("computed_tokens", computed)

    def lookup(self, status: str, took_ms: float, chunks: int, hit_chunks: int) -> None:
        """One question to the node."""
        self.add("lookups", 1, status=status)
        self.add("lookup_seconds", took_ms / 1e3)
        self.add("lookup_chunks", chunks)
        self.add("lookup_hit_chunks", hit_chunks)

    def take(self) -> dict[str, float]:
        """What was added since the last call."""
        values, self._values = self._values, {}
        return values


def merged(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """The sum of two takes."""
    total = dict(a)
    for name, value in b.items():
        total[name] = total.get(name, 0) + value
    return total


def split_name(key: str) -> tuple[str, str, str]:
    """(counter, label, value) of a key; label is empty where there is none."""
    name, _, rest = key.partition("|")
    label, _, value = rest.partition("=")
    return name, label, value
