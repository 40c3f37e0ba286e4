"""Processes of a test cluster: each has a log and a line in the cluster's record, and is ended by its own id."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import kube_reaper

T = TypeVar("T")

POLL_SECONDS = 0.05
END_SECONDS_MAX = 10.0
LOG_TAIL_CHARACTERS = 3_000


class NotReady(Exception):
    """What was waited for did not come in time."""


def wait_for(condition: Callable[[], T | None], what: str, seconds_max: float, every: float = POLL_SECONDS) -> T:
    """Whatever true thing the condition first gives; NotReady after the time."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds_max
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise NotReady(f"{what}: not within {seconds_max:.0f} s")
        pause.wait(every)


class Process:
    """A program that runs until it is stopped; may be started again."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.folder = folder
        self.environment = {**os.environ, **(environment or {})}
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Not in this terminal's process group: Ctrl-C reaches who started it, and he ends it."""
        assert not self.alive, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        kube_reaper.record_process(self.folder, self._process.pid)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """How it has ended; None while it runs."""
        return self._process.poll() if self._process is not None else None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def stop(self, seconds_max: float = END_SECONDS_MAX) -> None:
        """Asked to end, then killed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, and its end."""
        assert self._process is not None, f"{self.name} was not started"
        self._process.kill()
        self._process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:] if self.log.exists() else ""

    def wait_until(self, condition: Callable[[], T | None], what: str, seconds_max: float) -> T:
        """As wait_for, but says what the log says if it takes too long or the process ends."""

        def ended_or_true() -> tuple[bool, T | None] | None:
            answer = condition() if self.alive else None
            return (self.alive, answer) if answer or not self.alive else None

        try:
            alive, answer = wait_for(ended_or_true, f"{self.name} {what}", seconds_max)
        except NotReady as error:
            raise NotReady(f"{error}; its log ends:\n{self.tail()}") from None
        if answer is None:
            raise NotReady(f"{self.name} ended while it was to be {what} ({alive=}); its log ends:\n{self.tail()}")
        return answer
