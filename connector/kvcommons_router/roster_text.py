"""A roster as the text that its holder puts up for the workers: a line about all, then one for each instance. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import orjson

from kvcommons_router.roster import Entry, Presence, Roster
from kvcommons_router.settings_instances import InstanceSettings


@dataclasses.dataclass(frozen=True, slots=True)
class Posted:
    """A roster as it was read."""

    version: int
    entries: tuple[Entry, ...]
    models: Mapping[str, int]
    declared: tuple[str, ...]


class RosterWriter:
    """Writes such texts. The line of an instance is made once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Entry, bytes]] = {}

    def write(self, roster: Roster) -> bytes:
        """The text of a roster."""
        head = {"version": roster.version, "models": roster.models, "declared": roster.declared}
        known, self._known = self._known, {}
        for name, entry in roster.entries.items():
            found = known.get(name)
            self._known[name] = found if found is not None and found[0] is entry else (entry, _line(entry))
        return b"\n".join([orjson.dumps(head), *[line for _, line in self._known.values()]])


def _line(entry: Entry) -> bytes:
    settings = entry.settings.model_dump(mode="json", exclude_defaults=True)
    return orjson.dumps([entry.slot, entry.generation, entry.presence.value, entry.fences, entry.discovered, settings])


class RosterReader:
    """Reads such texts. An instance whose line has not changed is the same object as before."""

    def __init__(self) -> None:
        self._known: dict[bytes, Entry] = {}

    def read(self, text: bytes) -> Posted:
        """The roster of a text."""
        first, *lines = text.split(b"\n")
        known = self._known
        self._known = {line: known.get(line) or _entry(orjson.loads(line)) for line in lines}
        head: dict[str, Any] = orjson.loads(first)
        return Posted(head["version"], tuple(self._known.values()), head["models"], tuple(head["declared"]))


def _entry(fields: list[Any]) -> Entry:
    slot, generation, presence, fences, discovered, settings = fields
    return Entry(
        slot,
        generation,
        InstanceSettings.model_validate(settings),
        Presence(presence),
        fences=fences,
        discovered=discovered,
    )
