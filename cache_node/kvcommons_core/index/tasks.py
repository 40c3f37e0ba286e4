"""Ending background tasks for good. A client library may swallow a cancellation in the middle of a timeout, and a task that then goes on
would keep its owner waiting for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, Final

logger = logging.getLogger(__name__)

ATTEMPTS_MAX: Final = 100
ATTEMPT_SECONDS: Final = 0.05


def reraise_swallowed_cancellation() -> None:
    """To be called after awaiting what may have swallowed a cancellation of the present task.

    :raises asyncio.CancelledError: if the task was asked to end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A background task whose failure, which only a defect of ours can be, is said aloud at once."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_say_failure)
    return task


def _say_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error(
            "%s ended by a defect; the index stands still here until a restart", task.get_name(), exc_info=error
        )


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels until all have ended; what they end with is dropped."""
    pending = set(tasks)
    for _ in range(ATTEMPTS_MAX):
        if not pending:
            return
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=ATTEMPT_SECONDS)
        for task in done:
            if not task.cancelled():
                task.exception()
