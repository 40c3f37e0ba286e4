"""Which instances get requests: active checks say up or down, failed requests leave one out for a while."""

from __future__ import annotations

import enum

from kvcommons_router.cells import Cells
from kvcommons_router.metrics import Layout
from kvcommons_router.settings import HealthSettings


class Active(enum.IntEnum):
    """What the last checks of an instance said."""

    UNKNOWN = 0
    UP = 1
    DOWN = 2


class Health:
    """One worker's judgement of the instances together with the others', through the shared cells.

    One worker checks actively and all believe it; each worker may leave an instance out for a while (a circuit
    breaker), and the latest of these holds for all.
    """

    def __init__(self, layout: Layout, cells: Cells, own_row: int, checker_row: int, settings: HealthSettings) -> None:
        count = layout.instances_max
        self._settings = settings
        self._cells = cells
        self._layout = layout
        self._own = cells.row(own_row)
        self._checker = cells.row(checker_row)
        self._check_failures = [0] * count
        self._errors = [0] * count
        self._ejections = [0] * count
        self.active = [Active.UNKNOWN] * count
        self._ejected_until_ms = [0] * count
        self._present: list[int] = []
        self._now_ms = 0

    def follow(self, present: list[int]) -> None:
        """Takes which instances there are."""
        self._present = present

    def forget(self, index: int) -> None:
        """Nothing is known of an instance: it is new, or at another address, or gone."""
        self._check_failures[index] = self._errors[index] = self._ejections[index] = self._ejected_until_ms[index] = 0
        self.active[index] = Active.UNKNOWN
        self._own[self._layout.active + index] = Active.UNKNOWN
        self._own[self._layout.ejected_until + index] = 0

    def checked(self, index: int, *, ok: bool) -> bool:
        """Takes a check's result (in the worker that checks); whether the instance's state changed."""
        before = self.active[index]
        if ok:
            self._check_failures[index] = 0
            state = Active.UP
        else:
            self._check_failures[index] += 1
            failed = before is Active.UNKNOWN or self._check_failures[index] >= self._settings.failures_max
            state = Active.DOWN if failed else before
        self._own[self._layout.active + index] = state
        self.active[index] = state
        return state is not before

    def succeeded(self, index: int) -> None:
        """A request got an answer."""
        if self._errors[index]:
            self._errors[index] = 0
            self._ejections[index] = 0

    def failed(self, index: int, now_ms: int) -> bool:
        """A request got none; whether the instance is left out now because of it."""
        self._errors[index] += 1
        if self._errors[index] < self._settings.errors_max or self._ejected_until_ms[index] > now_ms:
            return False
        seconds = min(
            self._settings.eject_seconds * 2 ** min(self._ejections[index], 10), self._settings.eject_seconds_max
        )
        self._ejections[index] += 1
        until = now_ms + int(seconds * 1000)
        self._own[self._layout.ejected_until + index] = until
        self._ejected_until_ms[index] = until
        return True

    def refresh(self, now_ms: int) -> bool:
        """Reads what the other workers think; whether who is usable may have changed."""
        layout = self._layout
        changed = False
        for index in self._present:
            state = Active(self._checker[layout.active + index])
            if state is not self.active[index]:
                self.active[index] = state
                changed = True
            until = self._cells.largest(layout.ejected_until + index)
            was = self._ejected_until_ms[index] > self._now_ms
            self._ejected_until_ms[index] = until
            changed = changed or was is not (until > now_ms)
        self._now_ms = now_ms
        return changed

    def usable(self, index: int, now_ms: int) -> bool:
        """Whether an instance gets requests."""
        return self.active[index] is not Active.DOWN and self._ejected_until_ms[index] <= now_ms

    def ready(self, index: int, now_ms: int) -> bool:
        """Whether an instance is known to serve."""
        return self.active[index] is Active.UP and self._ejected_until_ms[index] <= now_ms
