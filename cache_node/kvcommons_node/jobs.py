"""Long work that a caller does not wait for: begun, watched and ended by its id. Kept in memory, and bounded."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from kvcommons_node.api import refusals, refusals_work
from kvcommons_node.api.models_jobs import JobAnswer, JobEntry, JobProgress, JobsAnswer, JobsQuery, JobState

RUNNING_MAX: Final = 4
WAITING_MAX: Final = 64
KEPT_MAX: Final = 256
KEPT_SECONDS: Final = 3_600.0
"""After its end a job is remembered for so long."""
JOB_SECONDS_MAX: Final = 86_400.0
ERROR_CHARACTERS_MAX: Final = 500

logger = logging.getLogger(__name__)


class JobError(Exception):
    """The work can't be done; the message says why and what to do."""


@dataclass
class Progress:
    """What the work says of itself while it runs."""

    unit: str
    total: int
    done: int = 0
    failed: int = 0
    detail: str = ""

    def shown(self) -> JobProgress:
        return JobProgress(
            done=self.done,
            failed=self.failed,
            total=self.total,
            unit=self.unit,
            detail=self.detail[:ERROR_CHARACTERS_MAX],
        )


Work = Callable[[Progress], Awaitable[dict[str, Any]]]
"""Does it and returns the result. :raises JobError: what can't be done; Refusal: what can't be done any more."""


@dataclass
class Job:
    """One piece of work."""

    id: str
    number: int
    kind: str
    name: str
    digest: bytes
    """Of what was asked: the same name for something else is a mistake."""
    work: Work
    progress: Progress
    created: float
    state: JobState = "waiting"
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None
    task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class Jobs:
    """One per daemon, on its event loop.

    :param tell: hears of each change of a state."""

    def __init__(
        self, tell: Callable[[dict[str, object]], None] = lambda _: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._number = 0
        self._closed = False

    def submit(self, kind: str, name: str | None, asked: BaseModel, progress: Progress, work: Work) -> JobAnswer:
        """Begins it, or answers with the one that the same call began before.

        :raises Refusal: if the name is another job's, or too many wait."""
        self._forget()
        digest = hashlib.sha256(f"{kind}\0{asked.model_dump_json()}".encode()).digest()
        called = name if name is not None else f"{kind}-{digest.hex()[:12]}"
        former = self._former(called, named=name is not None)
        if former is not None:
            if former.digest != digest:
                raise refusals_work.job_name_taken(called, former.kind, former.state)
            return JobAnswer(job=self._shown(former), created=False)
        if sum(1 for job in self._jobs.values() if not job.over) >= RUNNING_MAX + WAITING_MAX:
            raise refusals_work.too_many_jobs(RUNNING_MAX + WAITING_MAX)
        self._number += 1
        job = Job(secrets.token_hex(8), self._number, kind, called, digest, work, progress, self._clock())
        self._jobs[job.id] = job
        self._say(job)
        self._begin_waiting()
        return JobAnswer(job=self._shown(job), created=True)

    def page(self, query: JobsQuery) -> JobsAnswer:
        """The newest first."""
        self._forget()
        found = [
            job
            for job in reversed(self._jobs.values())
            if (not query.job or job.id == query.job)
            and (not query.state or job.state == query.state)
            and (not query.before or job.number < query.before)
        ]
        shown = found[: query.limit]
        return JobsAnswer(
            jobs=[self._shown(job) for job in shown],
            next=shown[-1].number if len(found) > len(shown) else 0,
            kept=len(self._jobs),
        )

    async def cancel(self, job_id: str) -> JobEntry:
        """Ends one; to end what is over changes nothing. What it did stays done. :raises Refusal: if there is none."""
        job = self._jobs.get(job_id)
        if job is None:
            raise refusals_work.no_job(job_id)
        await self._end(job)
        return self._shown(job)

    async def close(self) -> None:
        """Ends all; none is begun any more."""
        self._closed = True
        for job in list(self._jobs.values()):
            await self._end(job)

    async def _end(self, job: Job) -> None:
        if job.task is not None:
            job.task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({job.task})
        if not job.over:  # it had not yet begun
            self._over(job, "cancelled")

    def _former(self, name: str, *, named: bool) -> Job | None:
        """A job of this name that stands for a new one. Without a name of its own only one that is not over does."""
        answers: tuple[JobState, ...] = ("waiting", "running", "done") if named else ("waiting", "running")
        same = [job for job in self._jobs.values() if job.name == name and job.state in answers]
        return same[-1] if same else None

    def _begin_waiting(self) -> None:
        if self._closed:
            return
        free = RUNNING_MAX - sum(1 for job in self._jobs.values() if job.state == "running")
        for job in [job for job in self._jobs.values() if job.state == "waiting"][: max(0, free)]:
            job.state, job.started = "running", self._clock()
            job.task = asyncio.create_task(self._run(job), name=f"job-{job.id}")
            self._say(job)

    async def _run(self, job: Job) -> None:
        try:
            async with asyncio.timeout(JOB_SECONDS_MAX):
                job.result = await job.work(job.progress)
        except asyncio.CancelledError:
            self._over(job, "cancelled")
        except TimeoutError:
            self._over(job, "failed", f"not done within {JOB_SECONDS_MAX:.0f} s")
        except (JobError, refusals.Refusal) as error:
            self._over(job, "failed", str(error))
        else:
            self._over(job, "done")
        finally:
            if not job.over:  # a mistake of ours: the loop's handler names it, and nobody waits for this job
                self._over(job, "failed", "an error of the node; see its log")

    def _over(self, job: Job, state: JobState, error: str = "") -> None:
        job.state, job.error, job.ended, job.task = state, error[:ERROR_CHARACTERS_MAX], self._clock(), None
        self._say(job)
        logger.info("job %s (%s %s) %s%s", job.id, job.kind, job.name, state, f": {error}" if error else "")
        self._begin_waiting()

    def _say(self, job: Job) -> None:
        self._tell({"job": job.id, "job_kind": job.kind, "state": job.state, "name": job.name})

    def _forget(self) -> None:
        now = self._clock()
        over = [job for job in self._jobs.values() if job.ended is not None]
        stale = {job.id for job in over if job.ended is not None and now - job.ended > KEPT_SECONDS}
        stale |= {job.id for job in over[: max(0, len(over) - KEPT_MAX)]}
        for name in stale:
            del self._jobs[name]

    def _shown(self, job: Job) -> JobEntry:
        now = self._clock()
        until = job.ended if job.ended is not None else now
        return JobEntry(
            job=job.id,
            number=job.number,
            kind=job.kind,
            name=job.name,
            state=job.state,
            progress=job.progress.shown(),
            error=job.error,
            result=job.result,
            age_seconds=round(now - job.created, 3),
            running_seconds=round(until - job.started, 3) if job.started is not None else 0.0,
        )
