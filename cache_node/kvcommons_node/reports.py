"""What the last requests reused and why not more: engines' reports, kept for whoever asks."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from kvcommons_core.misses import explained

from kvcommons_node.api.models_requests import (
    REQUEST_ID_CHARACTERS_MAX,
    MissedChunks,
    RequestReport,
    RequestsAnswer,
    RequestsQuery,
)
from kvcommons_node.history import EXPLANATIONS as WHY_EXPLANATIONS
from kvcommons_node.history import History

REPORTS_MAX = 4_096
TOKENS_MAX = 1 << 40
REASON_CHARACTERS_MAX = 64
MISSED_MAX: Final = 64
MISSED: Final = re.compile(r"([0-9a-f]{16})(?::([0-9a-f]{16}))?")
UNTOLD: Final = ("missed_from", "missed", "other_tenant")
"""Of a report, what is for this node alone: routers hear nothing of it."""
SOURCES: Final = ("prompt_tokens", "own_tokens", "commons_tokens", "computed_tokens")


@dataclass(frozen=True)
class _Kept:
    number: int
    at: float
    request_id: str
    tokens: tuple[int, int, int, int]
    reason: str
    missed: tuple[MissedChunks, ...] = ()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def for_routers(report: str) -> str:
    """The report without what is for this node alone."""
    if '"missed' not in report and '"other_tenant' not in report:
        return report
    fields = json.loads(report)
    return json.dumps({name: value for name, value in fields.items() if name not in UNTOLD}, separators=(",", ":"))


class Reports:
    """The last REPORTS_MAX of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, history: History | None = None) -> None:
        self._clock = clock
        self.history = history or History(clock=clock)
        self._kept: deque[_Kept] = deque(maxlen=REPORTS_MAX)
        self._number = 0

    def __len__(self) -> int:
        return len(self._kept)

    def hear(self, report: str, fingerprint: bytes = b"") -> dict[str, int | str] | None:
        """Keeps a report that is one. Returns its fields, None where it is malformed: engines are not trusted."""
        try:
            fields = json.loads(report)
        except (ValueError, RecursionError):
            return None
        if not isinstance(fields, dict):
            return None
        tokens = [fields.get(name) for name in SOURCES]
        name, reason, model = fields.get("request_id", ""), fields.get("reason", ""), fields.get("model", "")
        if not isinstance(name, str) or not isinstance(reason, str) or not isinstance(model, str):
            return None
        counts = [one if isinstance(one, int) and 0 <= one < TOKENS_MAX else 0 for one in tokens]
        self._number += 1
        kept = _Kept(
            self._number,
            self._clock(),
            name[:REQUEST_ID_CHARACTERS_MAX],
            (counts[0], counts[1], counts[2], counts[3]),
            reason[:REASON_CHARACTERS_MAX],
            self._missed(fields, fingerprint),
        )
        self._kept.append(kept)
        counted = dict(zip(SOURCES, kept.tokens, strict=True))
        return {"request_id": kept.request_id, **counted, "reason": kept.reason, "model": model}

    def _missed(self, fields: Mapping[str, object], fingerprint: bytes) -> tuple[MissedChunks, ...]:
        """Why each chunk was missed; neighbours of one reason are told together."""
        first, told = fields.get("missed_from", 0), fields.get("missed", ())
        if not isinstance(first, int) or not 0 <= first < TOKENS_MAX or not isinstance(told, list):
            return ()
        found: list[MissedChunks] = []
        for number, text in enumerate(told[:MISSED_MAX], first):
            match = MISSED.fullmatch(text) if isinstance(text, str) else None
            if match is None:
                return ()
            text_key = int(match[2], 16) if match[2] else None
            other = bool(fields.get("other_tenant"))
            verdict = self.history.why(bytes.fromhex(match[1]), text_key, fingerprint, other)
            peers = list(verdict.peers)
            if found and (found[-1].why, found[-1].peers) == (verdict.why, peers):
                found[-1] = found[-1].model_copy(update={"last": number})
                continue
            found.append(
                MissedChunks(
                    first=number,
                    last=number,
                    key=match[1],
                    why=verdict.why,
                    explanation=WHY_EXPLANATIONS[verdict.why],
                    seconds_before=_rounded(verdict.seconds_ago),
                    lived_seconds=_rounded(verdict.age_seconds),
                    peers=peers,
                )
            )
        return tuple(found)

    def page(self, query: RequestsQuery) -> RequestsAnswer:
        """The newest first."""
        found: list[_Kept] = []
        following = 0
        for one in self._wanted(query):
            if len(found) == query.limit:
                following = found[-1].number
                break
            found.append(one)
        now = self._clock()
        shown = [
            RequestReport(
                number=one.number,
                request_id=one.request_id,
                age_seconds=round(max(0.0, now - one.at), 3),
                **dict(zip(SOURCES, one.tokens, strict=True)),
                reason=one.reason,
                explanation=explained(one.reason),
                missed=list(one.missed),
            )
            for one in found
        ]
        return RequestsAnswer(requests=shown, next=following, kept=len(self._kept))

    def _wanted(self, query: RequestsQuery) -> Iterator[_Kept]:
        for one in reversed(self._kept):
            if query.before and one.number >= query.before:
                continue
            if query.request and query.request != one.request_id:
                continue
            if not (query.missed and not one.reason):
                yield one
