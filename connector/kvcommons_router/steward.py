"""Decides who is on the roster: it hears the sources, waits for the workers to follow, and posts each version for them.

There is one in a router: in its supervisor, or in the process itself where that is the only worker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final

from kvcommons_core.errors import ConfigurationError

from kvcommons_router.board import Board
from kvcommons_router.cells import Cells
from kvcommons_router.listed import ListedFile
from kvcommons_router.metrics import CHANGES, Layout
from kvcommons_router.roster import Change, Roster, Wanted
from kvcommons_router.roster_text import RosterWriter
from kvcommons_router.settings import InstanceSettings, RouterSection
from kvcommons_router.wanted_text import WantedReader

logger = logging.getLogger(__name__)

WORDS: Final = {
    "added": "gets requests",
    "changed": "is described otherwise now",
    "restarted": "was started anew; what it held is void",
    "out": "is not ready and gets nothing new",
    "back": "gets requests again",
    "leaving": "is leaving and gets nothing new; what is under way ends",
    "gone": "has left",
    "dropped": "get nothing: there are too many",
}
LISTED_SECONDS: Final = 1.0


class Steward:
    """The one who posts. Nothing here waits."""

    def __init__(
        self,
        settings: RouterSection,
        layout: Layout,
        cells: Cells,
        board: Board,
        *,
        row: int,
        file: ListedFile | None = None,
        found: Board | None = None,
    ) -> None:
        """:param row: the cells that count what happens here.
        :param found: where instances that were discovered are put up.
        """
        declared = settings.kubernetes.names if settings.kubernetes is not None else ()
        self.roster = Roster(layout.instances_max, declared, layout.models_max)
        self._workers = settings.workers
        self._layout = layout
        self._cells = cells
        self._own = cells.row(row)
        self._board = board
        self._writer = RosterWriter()
        self._posted = 0
        self._file = file
        self._look_at = 0.0
        self._listed = _wanted(settings.instances)
        self._found_board = found
        self._found_reader = WantedReader()
        self._found_version = 0
        self._found: Sequence[Wanted] = ()
        self._news = True

    @property
    def watches(self) -> bool:
        """Whether there is anything that may change."""
        return self._file is not None or self._found_board is not None

    @property
    def settled(self) -> bool:
        """Whether nothing is under way that workers must follow first."""
        return self.roster.settled and self._posted == self.roster.version

    def poll(self, now: float, *, look: bool = False) -> None:
        """Takes what the sources say, and goes on as far as the workers have followed.

        :param look: whether to look at the file now, even if it was looked at a moment ago.
        """
        if self._file is not None and (look or now >= self._look_at):
            self._look_at = now + LISTED_SECONDS
            self._take_listed(self._file, look)
        self._take_found()
        if not self.roster.settled:
            applied = self._cells.smallest(self._layout.roster_applied, self._workers)
            self._tell(self.roster.release(applied, self._busy))
            self._news = self._news or self.roster.dropped > 0
        if self._news:
            self._news = False
            self._tell(self.roster.advance([*self._listed, *self._found]))
        self._own[self._layout.instances_dropped] = self.roster.dropped
        if self._posted != self.roster.version or not self._board.version:
            self._post()

    def _busy(self, slot: int) -> bool:
        return self._cells.total(self._layout.dispatched + slot) != 0

    def _take_listed(self, file: ListedFile, look: bool) -> None:
        column = self._layout.reloads
        try:
            listed = file.read(even_if_unchanged=look)
        except ConfigurationError as error:
            self._own[column + 1] += 1
            logger.error("the instances that were read before stay: %s", error)
            return
        if listed is not None:
            self._own[column] += 1
            self._listed = _wanted(listed)
            self._news = True
            logger.info("the file has been read again: %d instances", len(listed))

    def _take_found(self) -> None:
        board = self._found_board
        if board is None or board.version == self._found_version:
            return
        found = board.read()
        if found is not None:
            self._found_version, text = found
            self._found = self._found_reader.read(text)
            self._news = True

    def _tell(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._own[self._layout.roster_changes + CHANGES.index(change.what)] += 1
            level = logging.WARNING if change.what == "dropped" else logging.INFO
            entry = self.roster.entries.get(change.name)
            where = f" ({entry.settings.url})" if entry is not None and change.what in ("added", "changed") else ""
            logger.log(level, "%s%s %s", change.name, where, WORDS[change.what])

    def _post(self) -> None:
        try:
            self._board.write(self._writer.write(self.roster))
        except ValueError as error:
            logger.error("the workers go on with the instances that they have: the new roster is too long: %s", error)
        self._posted = self.roster.version


def _wanted(listed: Iterable[InstanceSettings]) -> Sequence[Wanted]:
    return [Wanted(settings) for settings in listed]
