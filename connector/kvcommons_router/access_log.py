"""The access log: one JSON object a line on standard output, written in batches, off unless asked for."""

from __future__ import annotations

import sys
import time
from typing import Final

import orjson

from kvcommons_router.fleet import Instance
from kvcommons_router.journey import Journey

PENDING_MAX: Final = 10_000


class AccessLog:
    """Lines wait for the next flush; beyond a bound they are dropped and the next line says how many."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._dropped = 0

    def write(self, exchange: Journey, instance: Instance | None, seconds: float) -> None:
        """Notes a request that ended."""
        if len(self._lines) >= PENDING_MAX:
            self._dropped += 1
            return
        first = exchange.first_byte_at
        record: dict[str, object] = {
            "time": round(time.time(), 3),
            "request_id": exchange.request_id,
            "tenant": exchange.tenant.name,
            "model": exchange.group.model,
            "path": exchange.request.path.decode("latin-1"),
            "status": exchange.status,
            "instance": instance.name if instance is not None else None,
            "attempts": exchange.attempts,
            "seconds": round(seconds, 6),
            "first_byte_seconds": round(first - exchange.request.received, 6) if first else None,
            "bytes": exchange.relayed,
            "length_tokens": exchange.length,
            "predicted_tokens": exchange.hit.peer,
        }
        if self._dropped:
            record["dropped"], self._dropped = self._dropped, 0
        self._lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        """Writes what waits."""
        if self._lines:
            lines, self._lines = self._lines, []
            sys.stdout.buffer.write(b"".join(lines))
            sys.stdout.buffer.flush()
