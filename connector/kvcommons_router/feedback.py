"""Truth by feedback: what engines really reused, against what was expected when the request was sent."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import orjson
from kvcommons_core.index import schema

from kvcommons_router.context import Context
from kvcommons_router.fleet import Instance
from kvcommons_router.index import Inquiry
from kvcommons_router.picker import Hit
from kvcommons_router.rates import TokenRatio
from kvcommons_router.tracing import Attempt, parts_of
from kvcommons_router.usage import Usage

EXPECTATIONS_MAX: Final = 20_000
TOLD_MAX: Final = 4_096
PLACES: Final = ("engine", "memory", "disk", "peer")
# Being wrong by less than this many steps of text is the error of counting tokens by bytes.
SLACK_STEPS: Final = 1
# The node was asked and did not have it; any other reason says nothing about what it holds.
ABSENT: Final = frozenset({"not_found", "partly_found"})
APPLIED, CORRECTED, FOREIGN, INVALID = range(4)


class Expectation(NamedTuple):
    """What was expected of a request when it was sent."""

    instance: Instance
    keys: Sequence[bytes]
    hit: Hit
    born: int
    """The dispatch, in the index's units: what was published later is not corrected by it."""
    text_bytes: int
    ratio: TokenRatio
    at: float
    """The dispatch, in Unix time."""
    tenant: str
    model: str
    span: Attempt | None = None


class Report(NamedTuple):
    """What the connector says of a request."""

    request_id: str
    prompt_tokens: int
    own_tokens: int
    commons_tokens: int
    reason: str


def by_place(hit: Hit) -> tuple[int, int, int, int]:
    """Tokens that were expected in each of PLACES, and in none before it."""
    return (hit.engine, hit.memory - hit.engine, hit.disk - hit.memory, hit.peer - hit.disk)


def parse_report(data: bytes) -> Report | None:
    """A message of the feedback channel, or None if it is not one."""
    try:
        fields = orjson.loads(data)
        report = Report(
            fields["request_id"],
            fields["prompt_tokens"],
            fields["own_tokens"],
            fields["commons_tokens"],
            fields.get("reason", ""),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    numbers = report[1:4]
    if not isinstance(report.request_id, str) or not all(type(n) is int and 0 <= n < 1 << 31 for n in numbers):
        return None
    return report


class Beliefs(Protocol):
    """The index, as feedback changes it."""

    def confirm(self, keys: Sequence[bytes]) -> None:
        """These were really hit."""

    def disbelieve(self, instance: Instance, keys: Sequence[bytes], dispatch_born: int) -> bool:
        """Takes back what an instance's node was believed to hold; whether it was begun."""


class Expectations:
    """The requests that reports are awaited of; bounded, the oldest are forgotten first."""

    def __init__(self, context: Context, index: Beliefs) -> None:
        self._context = context
        self._index = index
        self._open: dict[str, Expectation] = {}
        self._told: dict[str, tuple[Expectation, Report]] = {}
        self._mark = context.id_prefix.encode()
        self.reports = False  # whether connectors report at all

    def expect(self, inquiry: Inquiry, instance: Instance, keys: Sequence[bytes]) -> None:
        """A request was sent."""
        found, now, group = self._open, time.time(), inquiry.group
        found[inquiry.request_id] = Expectation(
            instance,
            keys,
            inquiry.hit,
            schema.born_of(now),
            inquiry.text_bytes,
            group.ratio,
            now,
            inquiry.tenant_name,
            group.model,
            inquiry.span,
        )
        if len(found) > EXPECTATIONS_MAX:
            for request_id in list(itertools.islice(found, EXPECTATIONS_MAX // 16)):
                del found[request_id]

    def backdate(self, request_id: str, *, seconds: int) -> None:
        """Moves a request's dispatch into the past (or, below 0, the future); for tests, which don't wait for 16 s."""
        found = self._open[request_id]
        self._open[request_id] = found._replace(born=schema.born_of(time.time() - seconds))

    def forget(self, request_id: str) -> None:
        """A request was not served."""
        self._open.pop(request_id, None)

    def take(self, data: bytes) -> None:
        """A message of the channel, ours or another worker's."""
        column = self._context.layout.feedback
        count = self._context.recorder.count
        if self._mark not in data:
            count(column + FOREIGN)
            return
        report = parse_report(data)
        if report is None:
            count(column + INVALID)
            return
        self.reports = True
        expected = self._open.pop(report.request_id, None)
        if expected is None:
            count(column + FOREIGN)
            return
        self._compare(expected, report, data)

    def take_usage(self, request_id: str, usage: Usage) -> None:
        """An answer's own account; it does not say from where."""
        expected = self._open.pop(request_id, None)
        if expected is None:
            return
        if usage.cached_tokens < 0:
            expected.ratio.add(expected.text_bytes, usage.prompt_tokens)
            return
        self._compare(expected, Report(request_id, usage.prompt_tokens, usage.cached_tokens, 0, "usage"))

    def account(self, request_id: str, tenant: str) -> dict[str, object] | None:
        """What was expected of a request of this tenant's when it was sent, and what its engine said, if it has."""
        told = self._told.get(request_id)
        expected = told[0] if told is not None else self._open.get(request_id)
        if expected is None or expected.tenant != tenant:
            return None
        return self._account(request_id, expected, told[1] if told is not None else None)

    def accounts(self, tenant: str, count_max: int) -> list[dict[str, object]]:
        """The same of the tenant's last requests that engines reported on, newest first."""
        own = (one for one in reversed(self._told.items()) if one[1][0].tenant == tenant)
        return [self._account(name, *told) for name, told in itertools.islice(own, count_max)]

    def _account(self, request_id: str, expected: Expectation, report: Report | None) -> dict[str, object]:
        hit, settings = expected.hit, expected.instance.settings
        return {
            "request_id": request_id,
            "age_seconds": round(max(0.0, time.time() - expected.at), 3),
            "model": expected.model,
            "replica": expected.instance.name,
            "replica_gone": expected.instance.gone,
            "node": settings.node,
            "predicted_tokens": dict(zip(PLACES, by_place(hit), strict=True)),
            "reported": report._asdict() if report is not None else None,
        }

    def _compare(self, expected: Expectation, report: Report, data: bytes = b"") -> None:
        context = self._context
        if expected.span is not None:
            expected.span.reused(report, parts_of(orjson.loads(data).get("parts")) if data else [])
        self._told[report.request_id] = (expected, report)
        if len(self._told) > TOLD_MAX:
            del self._told[next(iter(self._told))]
        layout, count, index = context.layout, context.recorder.count, expected.instance.index
        expected.ratio.add(expected.text_bytes, report.prompt_tokens)
        if expected.instance.gone:  # its cells and its place in the index may be another's
            return
        hit = expected.hit
        for at, tokens in enumerate(by_place(hit)):
            if tokens:
                count(layout.predicted_tokens + index * 4 + at, tokens)
        count(layout.prompt_tokens, report.prompt_tokens)
        prefill = expected.instance.candidate.prefill
        for at, tokens in enumerate((report.own_tokens, report.commons_tokens)):
            if tokens:
                count(layout.actual_tokens + index * 2 + at, tokens)
                spared = prefill.seconds(tokens, report.prompt_tokens) - prefill.base_seconds
                count(layout.saved_seconds + index * 2 + at, int(spared * 1e6))
        corrected = self._correct(expected, report)
        count(layout.feedback + (CORRECTED if corrected else APPLIED))

    def _correct(self, expected: Expectation, report: Report) -> bool:
        """Confirms what was hit, and takes back what the instance's node was believed to hold but did not."""
        keys = expected.keys
        if not keys or not report.prompt_tokens:
            return False
        total = max(expected.text_bytes, 1)
        step = report.prompt_tokens / total * self._context.step_bytes
        reused = report.own_tokens + report.commons_tokens
        held = min(len(keys), int(reused / step + 0.5))
        if held:
            self._index.confirm(keys[:held])
        claimed = min(len(keys), int(expected.hit.memory / step + 0.5))
        if report.reason not in ABSENT or claimed <= held + SLACK_STEPS:
            return False
        return self._index.disbelieve(expected.instance, keys[held:claimed], expected.born)
