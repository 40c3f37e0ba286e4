"""What is said about a node that answers too late: once a minute, with a count, the setting and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

EVERY_MS: Final = 60_000


class LateLookups:
    """Counts, and warns at the first one and then at most once a minute."""

    def __init__(self, warn: Callable[[str], None], now_ms: Callable[[], float], lookup_ms_max: int) -> None:
        self._warn, self._now_ms, self._lookup_ms_max = warn, now_ms, lookup_ms_max
        self._count = 0
        self._since_ms: float | None = None

    def __call__(self) -> None:
        """One lookup has taken longer than `lookup_ms_max`."""
        self._count += 1
        now = self._now_ms()
        if self._since_ms is not None and now - self._since_ms < EVERY_MS:
            return
        span = "" if self._since_ms is None else f" in the last {(now - self._since_ms) / 1_000:.0f} s"
        lookups = "1 lookup" if self._count == 1 else f"{self._count} lookups"
        self._warn(
            f"{lookups}{span} took longer than lookup_ms_max ({self._lookup_ms_max} ms): the prompt is computed instead. The node or "
            "this machine is too busy; give them a processor more, or raise lookup_ms_max in kv_connector_extra_config"
        )
        self._count, self._since_ms = 0, now
