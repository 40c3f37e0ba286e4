"""Active checks: GET /health of every instance, by one worker for all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from kvcommons_router.context import Context
from kvcommons_router.fleet import Instance
from kvcommons_router.health import Active
from kvcommons_router.tls import engine_tls

logger = logging.getLogger(__name__)

CHECKS_AT_ONCE_MAX: Final = 64
STATUS_LINE_BYTES_MAX: Final = 1024


class HealthChecker:
    """Asks each instance on a connection of its own: one that answers here accepts requests."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings.health
        self._authority = context.settings.engine_ca
        self._changed = asyncio.Event()
        self._at_once = asyncio.Semaphore(CHECKS_AT_ONCE_MAX)

    async def run(self) -> None:
        """Runs until cancelled."""
        instances = self._context.fleet.instances
        while True:
            self._changed.clear()
            await asyncio.gather(*(self._check(instance) for instance in instances if instance.ready))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._settings.interval_seconds)

    def wake(self) -> None:
        """Somebody has come, and is asked at once."""
        self._changed.set()

    async def _check(self, instance: Instance) -> None:
        asked = instance.settings
        async with self._at_once:
            ok, reason = await self._ask(instance)
        context = self._context
        if instance.gone or instance.settings is not asked:
            return
        before = context.health.active[instance.index]
        if context.health.checked(instance.index, ok=ok):
            context.fleet.refresh(context.health, context.now_ms())
            if ok:
                logger.info("%s is up", instance.name)
                if before is Active.DOWN:
                    context.index.revived(instance)
            else:
                instance.pool.close_idle()
                logger.warning("%s is down: %s", instance.name, reason)

    async def _ask(self, instance: Instance) -> tuple[bool, str]:
        settings = instance.settings
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                tls = engine_tls(self._authority) if settings.https else None
                reader, writer = await asyncio.open_connection(settings.host, settings.port, ssl=tls)
                try:
                    writer.write(b"GET /health HTTP/1.1\r\n" + instance.host_lines + b"Connection: close\r\n\r\n")
                    line = await reader.readline()
                finally:
                    writer.close()
        except TimeoutError:
            return False, f"no answer in {self._settings.timeout_seconds} s"
        except (OSError, ValueError) as error:
            return False, str(error) or type(error).__name__
        status = line[9:12]
        if line.startswith(b"HTTP/1.") and status.startswith(b"2"):
            return True, ""
        return False, f"it answered {line[:STATUS_LINE_BYTES_MAX].decode('latin-1').strip() or 'nothing'}"
