"""What is said about lookups that the node answers too late."""

from __future__ import annotations

import pytest
from connector_fakes import FakeNode
from kvcommons_connector.identity import RequestIdentity, TextHints
from kvcommons_connector.late import LateLookups
from kvcommons_connector.scheduler import SchedulerCore
from kvcommons_connector.stats import Counters
from kvcommons_connector.tracking import Geometry, Tracked

TOKENS = list(range(600))


class Asking:
    """A scheduler's side whose every request is asked for once."""

    def __init__(self, status: str) -> None:
        self.now_ms = 0.0
        self.said: list[str] = []
        node = FakeNode()
        node.status = status
        self._core = SchedulerCore(
            Geometry(256, 128, bytes(32), False),
            node,
            Counters(),
            lambda: self.now_ms,
            load=True,
            store=True,
            lease_ms_max=10_000,
            fetch_ms_max=500,
            on_late=LateLookups(self.said.append, lambda: self.now_ms, 50),
        )

    def ask(self, name: str) -> None:
        self._core.add(Tracked(name, len(TOKENS), RequestIdentity(), TextHints()))
        assert self._core.matched(name, TOKENS, 0) == (0, False)


def test_lookups_that_come_too_late_are_told_once_a_minute_with_their_number() -> None:
    """The log names the setting, its value and the remedy at the first one, and then how many there were."""
    asking = Asking("timed_out")
    for number in range(5):
        asking.ask(str(number))
        asking.now_ms += 10_000
    assert len(asking.said) == 1
    assert "1 lookup took longer than lookup_ms_max (50 ms)" in asking.said[0]
    assert "raise lookup_ms_max" in asking.said[0]
    asking.now_ms += 10_000
    asking.ask("later")
    assert "5 lookups in the last 60 s" in asking.said[1]


@pytest.mark.parametrize("status", ["disconnected", "full", "ok"])
def test_other_answers_are_not_called_late(status: str) -> None:
    """A node that is away is another matter, and said elsewhere; a miss is no matter at all."""
    asking = Asking(status)
    asking.ask("a")
    assert asking.said == []
