"""Events of what does not come forward are read late, seldom, and only while it lasts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from fake_api import Failure, FakeApi, fake_api
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.reconcile.resources import Id
from kvcommons_operator.reconcile.warnings import AFTER_SECONDS, PAUSE_SECONDS_MAX, Warnings, latest
from kvcommons_operator.troubles import Puzzle

PATH = "/apis/events.k8s.io/v1/namespaces/llm/events"
CHAT = Id("InferenceDeployment", "llm", "chat")
PUZZLE = Puzzle("llm", "chat-engine-0", "uid-0")
NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)


def event(reason: str, note: str, seconds_ago: float, kind: str = "Warning") -> dict[str, Any]:
    at = (NOW - timedelta(seconds=seconds_ago)).isoformat()
    return {"reason": reason, "note": note, "type": kind, "deprecatedLastTimestamp": at, "metadata": {}}


def test_only_what_nothing_was_better_after_counts() -> None:
    """The newest warning is first; what came before a step forward, and what is old, is no news."""
    mounted = [event("FailedMount", "b", 5), event("FailedMount", "a", 60), event("FailedMount", "a", 61)]
    assert latest(mounted, NOW) == ("FailedMount: b", "FailedMount: a")
    assert latest([*mounted, event("Pulling", "image", 30, "Normal")], NOW) == ("FailedMount: b",)
    assert latest([event("FailedMount", "old", 4_000)], NOW) == ()
    login = event("FailedToRetrieveImagePullSecret", "none", 9)
    assert latest([event("Pulling", "image", 8, "Normal"), login], NOW) == ("FailedToRetrieveImagePullSecret: none",)
    assert latest([{"reason": "Odd", "type": "Warning"}], NOW) == ()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(test: Callable[[FakeApi, KubeClient, Clock], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with fake_api() as (api, client):
            await test(api, client, Clock())

    asyncio.run(whole())


def test_it_asks_late_then_less_and_less_and_stops_with_the_puzzle() -> None:
    """Nothing for ten seconds, then in growing pauses; a change is told to the resource; what came forward is forgotten."""

    async def test(api: FakeApi, client: KubeClient, clock: Clock) -> None:
        told: list[Id] = []
        warnings = Warnings(client, told.append, clock=clock)
        now = datetime.now(UTC).isoformat()
        note = {"reason": "FailedMount", "note": "no", "type": "Warning", "eventTime": now}
        api.put(PATH, "one", **note)
        warnings.watch(CHAT, (PUZZLE,))
        clock.now = AFTER_SECONDS - 1
        await warnings.tick()
        assert api.asked == []
        times = []
        for second in range(int(AFTER_SECONDS), 400):
            clock.now = float(second)
            before = len(api.asked)
            await warnings.tick()
            times += [second] if len(api.asked) > before else []
        assert api.requests("GET")[0]["fieldSelector"] == "regarding.uid=uid-0"
        assert (told, warnings.of("uid-0")) == ([CHAT], ("FailedMount: no",))
        pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert pauses == sorted(pauses)
        assert pauses[-1] == PAUSE_SECONDS_MAX
        warnings.watch(CHAT, ())
        assert warnings.of("uid-0") == ()
        clock.now += 1_000
        before = len(api.asked)
        await warnings.tick()
        assert len(api.asked) == before

    run(test)


def test_events_that_may_not_be_read_hold_nothing_up() -> None:
    """A refused request is no failure of the operator, and is not repeated at once."""

    async def test(api: FakeApi, client: KubeClient, clock: Clock) -> None:
        warnings = Warnings(client, lambda key: None, after_seconds=0, clock=clock)
        api.failures.append(Failure(403))
        warnings.watch(CHAT, (PUZZLE,))
        await warnings.tick()
        clock.now = PAUSE_SECONDS_MAX - 1
        await warnings.tick()
        assert len(api.asked) == 1

    run(test)
