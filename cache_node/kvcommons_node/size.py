"""The arena's size while the node lives: a wish that outlives a restart, until somebody configures another size."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kvcommons_core.errors import StartRefusedError
from kvcommons_core.settings_values import format_bytes

from kvcommons_node import preflight
from kvcommons_node.api import refusals
from kvcommons_node.api.models_size import ResizeAnswer, ResizeRequest

FILE = "arena.json"
ARENA_ALIGN_BYTES = 4096

logger = logging.getLogger(__name__)


def wished(state_directory: Path, configured_bytes: int) -> int:
    """What the arena is to have: the last wish, if the configuration is still the one that it was made under."""
    try:
        told = json.loads((state_directory / FILE).read_text())
        if told["configured_bytes"] == configured_bytes:
            return int(told["arena_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return configured_bytes


def wish(state_directory: Path, configured_bytes: int, arena_bytes: int) -> None:
    """:raises OSError: if it can't be written."""
    file = state_directory / FILE
    scratch = file.with_suffix(".new")
    scratch.write_text(json.dumps({"configured_bytes": configured_bytes, "arena_bytes": arena_bytes}) + "\n")
    scratch.replace(file)


def forget(state_directory: Path) -> None:
    """The next start is as configured."""
    (state_directory / FILE).unlink(missing_ok=True)


class Sized(Protocol):
    """What is known of the node, as it was started."""

    @property
    def state_directory(self) -> Path: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def configured_bytes(self) -> int: ...
    @property
    def holder_socket(self) -> Path | None: ...
    @property
    def huge_pages(self) -> bool: ...


class Sizing:
    """Takes a wish down and has the daemon begin anew, which moves what fits into an arena of the new size."""

    def __init__(self, started: Sized, restart: Callable[[], None]) -> None:
        self._started = started
        self._restart = restart

    def resize(self, request: ResizeRequest) -> ResizeAnswer:
        """:raises Refusal: if the content would be lost, or the size is not possible here."""
        started = self._started
        wanted = request.arena_bytes // ARENA_ALIGN_BYTES * ARENA_ALIGN_BYTES
        answer = ResizeAnswer(
            before_bytes=started.arena_bytes, arena_bytes=wanted, restarts=wanted != started.arena_bytes
        )
        if not answer.restarts:
            return answer
        if started.holder_socket is None:
            raise refusals.content_would_go(
                "the node has no holder", "set holder_socket, or restart the node with the new size"
            )
        if started.huge_pages:
            raise refusals.content_would_go("the arena is of reserved huge pages", "restart the node with the new size")
        try:
            preflight.check_capacity(wanted, preflight.machine_memory_bytes())
        except StartRefusedError as error:
            raise refusals.no_such_size(wanted, str(error)) from error
        wish(started.state_directory, started.configured_bytes, wanted)
        before, after = format_bytes(started.arena_bytes), format_bytes(wanted)
        logger.info("beginning anew with an arena of %s instead of %s: %s", after, before, request.reason)
        self._restart()
        return answer
