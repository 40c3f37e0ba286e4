"""A worker's hand on the roster: it takes each new version, and says that it has."""

from __future__ import annotations

from collections.abc import Callable

from kvcommons_router.board import Board
from kvcommons_router.context import Context
from kvcommons_router.fleet import FleetChanges
from kvcommons_router.roster_text import RosterReader


class Follower:
    """Looks at the board a few ten times a second; mostly that is comparing two numbers."""

    def __init__(self, context: Context, board: Board) -> None:
        self._context = context
        self._board = board
        self._reader = RosterReader()
        self._seen = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change of the fleet."""

    def poll(self) -> None:
        """Takes what is new."""
        if self._board.version == self._seen:
            return
        found = self._board.read()
        if found is None:
            return
        first = not self._seen
        self._seen, text = found
        posted = self._reader.read(text)
        context = self._context
        changes = context.fleet.follow(posted.entries, posted.models, posted.declared)
        if first:
            self._clear_absent()
        self._apply(changes)
        context.recorder.row[context.layout.roster_applied] = posted.version

    def _clear_absent(self) -> None:
        """A process that was here before may have died with cells of an instance that is no longer there."""
        present = {one.index for one in self._context.fleet.instances}
        layout, row = self._context.layout, self._context.recorder.row
        if row.tobytes().count(0) == row.nbytes:
            return
        for index in range(layout.instances_max):
            if index not in present:
                layout.clear_instance(row, index)

    def _apply(self, changes: FleetChanges) -> None:
        context = self._context
        instances = context.fleet.instances
        for instance in changes.gone:
            context.layout.clear_instance(context.recorder.row, instance.index)
            context.health.forget(instance.index)
        for instance in changes.moved:
            context.health.forget(instance.index)
        context.load.follow({one.index: one.candidate for one in instances})
        context.health.follow([one.index for one in instances])
        context.index.follow(changes.gone)
        for instance in changes.restarted:
            context.index.revived(instance, "restarted")
        context.fleet.refresh(context.health, context.now_ms())
        self.on_change()
