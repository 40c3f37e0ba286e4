"""Instances that were discovered, as the text that the discovering process puts up: a line for each. Pure."""

from __future__ import annotations

import orjson

from kvcommons_router.roster import Presence, Wanted
from kvcommons_router.settings_instances import InstanceSettings


def line_of(one: Wanted) -> bytes:
    """The line of an instance."""
    settings = one.settings.model_dump(mode="json", exclude_defaults=True)
    return orjson.dumps([settings, one.presence.value, one.incarnation])


class WantedReader:
    """Reads such texts. An instance whose line has not changed is the same object as before."""

    def __init__(self) -> None:
        self._known: dict[bytes, Wanted] = {}

    def read(self, text: bytes) -> list[Wanted]:
        """What a text says."""
        known = self._known
        lines = text.split(b"\n") if text else []
        self._known = {line: known.get(line) or _wanted(line) for line in lines}
        return list(self._known.values())


def _wanted(line: bytes) -> Wanted:
    settings, presence, incarnation = orjson.loads(line)
    return Wanted(InstanceSettings.model_validate(settings), Presence(presence), incarnation, discovered=True)
