"""The file of settings, read again for its instances when it changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from kvcommons_router.settings import InstanceSettings, RouterSettings

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int]


class ListedFile:
    """Instances come and go by it; any other setting takes a restart, and a change of one is said once."""

    def __init__(self, path: Path, load: Callable[[], RouterSettings], first: RouterSettings) -> None:
        """:param load: reads all sources of settings as they are now."""
        self._path = path
        self._load = load
        self._stamp = self._look()
        self._others = _others(first)

    def _look(self) -> Stamp:
        try:
            found = os.stat(self._path)
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def read(self, *, even_if_unchanged: bool = False) -> tuple[InstanceSettings, ...] | None:
        """The instances that are listed now; None if the file is as it was when it was last read.

        :raises ConfigurationError: if it can't be used; it is not tried again until it changes.
        """
        stamp = self._look()
        if stamp == self._stamp and not even_if_unchanged:
            return None
        self._stamp = stamp
        settings = self._load()
        others = _others(settings)
        if others != self._others:
            self._others = others
            logger.warning("%s: only instances are taken from it now; its other changes need a restart", self._path)
        return settings.router.instances


def _others(settings: RouterSettings) -> RouterSettings:
    return settings.model_copy(update={"router": settings.router.model_copy(update={"instances": ()})})
