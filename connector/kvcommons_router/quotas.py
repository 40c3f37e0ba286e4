"""What a tenant may ask for in a minute: requests, and tokens of prompts. Each is a bucket that fills evenly and holds a minute's worth.

Workers and routers tell one another what they have let pass, so a tenant's minute is one for all of them, as far as they have heard.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Final

from kvcommons_router.errors import Refusal
from kvcommons_router.metrics import Recorder

TOLD_MAX: Final = 2_000
Spent = dict[str, tuple[int, int]]
"""Requests and tokens that were let pass, by tenant."""


@dataclasses.dataclass(frozen=True, slots=True)
class Allowance:
    """Of a tenant, in a minute; 0 for no limit."""

    requests: int = 0
    tokens: int = 0


class _Bucket:
    __slots__ = ("left", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.left = float(per_minute)

    def fill(self, seconds: float) -> None:
        self.left = min(float(self.per_minute), self.left + self.per_minute * seconds / 60)

    def seconds_until(self, wanted: float) -> float:
        """0 if there is so much, or there is no limit."""
        if not self.per_minute or self.left >= wanted:
            return 0.0
        return (wanted - self.left) * 60 / self.per_minute


class _Account:
    __slots__ = ("allowance", "at", "requests", "tokens")

    def __init__(self, allowance: Allowance, now: float) -> None:
        self.allowance = allowance
        self.requests = _Bucket(allowance.requests)
        self.tokens = _Bucket(allowance.tokens)
        self.at = now

    def take(self, requests: int, tokens: int) -> None:
        self.requests.left -= requests
        self.tokens.left -= tokens


class Quotas:
    """The accounts of tenants that have an allowance; there are as many as the file of keys names."""

    def __init__(self, recorder: Recorder, clock: Callable[[], float]) -> None:
        self._recorder = recorder
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._heard: dict[str, Spent] = {}
        self._spent: dict[str, tuple[int, int, float]] = {}  # and when last; in that order

    def check(self, tenant: str, allowance: Allowance) -> None:
        """Whether a tenant may ask for one more; a prompt of any length is let pass while anything is left, and its tokens are owed.

        :raises Refusal: if not; it says when to come again.
        """
        now = self._clock()
        account = self._accounts.get(tenant)
        if account is None or account.allowance != allowance:
            account = self._accounts[tenant] = _Account(allowance, now)
        elapsed, account.at = now - account.at, now
        account.requests.fill(elapsed)
        account.tokens.fill(elapsed)
        for what, bucket, wanted in (("requests", account.requests, 1.0), ("tokens", account.tokens, 0.0)):
            seconds = bucket.seconds_until(wanted)
            if seconds > 0.0:
                self._recorder.refused("tenant_minute")
                message = f"This tenant may use {bucket.per_minute} {what} a minute, and has."
                retry = max(1, math.ceil(seconds))
                raise Refusal(429, message, code="rate_limit_exceeded", retry_after_seconds=retry)

    def spend(self, tenant: str, tokens: int) -> None:
        """A request was let pass."""
        self._accounts[tenant].take(1, tokens)
        requests, before, _ = self._spent.pop(tenant, (0, 0, 0.0))
        self._spent[tenant] = (requests + 1, before + tokens, self._clock())

    def told(self) -> Spent:
        """What others are told: of those that asked for anything in the last minute, since they did so."""
        since = self._clock() - 60.0
        while self._spent and next(iter(self._spent.values()))[2] < since:
            del self._spent[next(iter(self._spent))]
        latest = itertools.islice(reversed(self._spent.items()), TOLD_MAX)
        return {tenant: (requests, tokens) for tenant, (requests, tokens, _) in latest}

    def hear(self, source: str, spent: Mapping[str, tuple[int, int]]) -> None:
        """Takes what another process has let pass since it began."""
        known = self._heard.get(source)
        self._heard[source] = now = {tenant: (requests, tokens) for tenant, (requests, tokens) in spent.items()}
        if known is None:  # what it let pass before we heard of it is not of this minute, most likely
            return
        for tenant, (requests, tokens) in now.items():
            account = self._accounts.get(tenant)
            before = known.get(tenant, (0, 0))
            if account is not None and requests >= before[0]:
                account.take(requests - before[0], tokens - before[1])

    def forget(self, source: str) -> None:
        """It is gone."""
        self._heard.pop(source, None)
