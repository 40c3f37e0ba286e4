"""Jobs by themselves: bounds, names, ends; the work is the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kvcommons_node.api.models_jobs import CancelRequest, JobEntry, JobsQuery
from kvcommons_node.api.refusals import Refusal
from kvcommons_node.jobs import KEPT_MAX, KEPT_SECONDS, RUNNING_MAX, WAITING_MAX, JobError, Jobs, Progress

ASKED, OTHER = CancelRequest(job="0" * 16), CancelRequest(job="1" * 16)


class Gate:
    """Work that goes on until the test opens it."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.begun = 0

    async def __call__(self, progress: Progress) -> dict[str, Any]:
        self.begun += 1
        await self.opened.wait()
        progress.done = progress.total
        return {"what": "done"}


async def failing(progress: Progress) -> dict[str, Any]:
    raise JobError("it can't be done")


def one(jobs: Jobs, job_id: str) -> JobEntry:
    return jobs.page(JobsQuery(job=job_id)).jobs[0]


async def ended(jobs: Jobs, job_id: str) -> JobEntry:
    async with asyncio.timeout(5):
        while one(jobs, job_id).state in ("waiting", "running"):  # noqa: ASYNC110 - a job has no way to call back
            await asyncio.sleep(0)
    return one(jobs, job_id)


async def test_a_job_runs_ends_and_is_told() -> None:
    """Waiting, running and done are told as they happen; what it found is its result."""
    told: list[object] = []
    jobs, gate = Jobs(lambda fields: told.append(fields["state"])), Gate()
    answer = jobs.submit("prewarm", None, ASKED, Progress("documents", 3), gate)
    assert (answer.created, answer.job.state, answer.job.progress.total) == (True, "running", 3)
    gate.opened.set()
    job = await ended(jobs, answer.job.job)
    assert (job.state, job.progress.done, job.result) == ("done", 3, {"what": "done"})
    assert told == ["waiting", "running", "done"]


async def test_the_same_call_again_begins_nothing() -> None:
    """While it runs it is answered with; under a name of its own also when it is done; another call under that name is refused."""
    jobs, gate = Jobs(), Gate()
    first = jobs.submit("prewarm", "docs", ASKED, Progress("documents", 1), gate)
    again = jobs.submit("prewarm", "docs", ASKED, Progress("documents", 1), gate)
    assert (again.job.job, again.created) == (first.job.job, False)
    with pytest.raises(Refusal, match="asked for something else"):
        jobs.submit("prewarm", "docs", OTHER, Progress("documents", 1), gate)
    unnamed = jobs.submit("move", None, ASKED, Progress("chunks", 1), gate)
    gate.opened.set()
    await ended(jobs, first.job.job)
    await ended(jobs, unnamed.job.job)
    assert jobs.submit("prewarm", "docs", ASKED, Progress("documents", 1), gate).created is False
    assert jobs.submit("move", None, ASKED, Progress("chunks", 1), gate).created is True
    await jobs.close()


async def test_what_failed_may_be_begun_again() -> None:
    """A failed job says why, and its name stands for the next try."""
    jobs = Jobs()
    first = jobs.submit("move", "m", ASKED, Progress("chunks", 1), failing)
    job = await ended(jobs, first.job.job)
    assert (job.state, job.error) == ("failed", "it can't be done")
    assert jobs.submit("move", "m", ASKED, Progress("chunks", 1), failing).created is True
    await jobs.close()


async def test_so_many_run_at_one_time_and_so_many_wait() -> None:
    """Beyond what runs a job waits for its turn; beyond what waits it is refused; an ended one makes room."""
    jobs, gate = Jobs(), Gate()
    ids = [jobs.submit("x", str(n), ASKED, Progress("", 0), gate).job.job for n in range(RUNNING_MAX + WAITING_MAX)]
    with pytest.raises(Refusal, match="run or wait already"):
        jobs.submit("x", "more", ASKED, Progress("", 0), gate)
    await asyncio.sleep(0)
    assert gate.begun == RUNNING_MAX
    assert (await jobs.cancel(ids[0])).state == "cancelled"
    assert (await jobs.cancel(ids[-1])).state == "cancelled"
    assert one(jobs, ids[RUNNING_MAX]).state == "running"
    await jobs.close()
    assert {job.state for job in jobs.page(JobsQuery(limit=500)).jobs} == {"cancelled"}


async def test_cancelling_twice_or_what_is_over_changes_nothing() -> None:
    """An end is an end; a job that there is not is refused."""
    jobs, gate = Jobs(), Gate()
    answer = jobs.submit("x", None, ASKED, Progress("", 0), gate)
    await jobs.cancel(answer.job.job)
    assert (await jobs.cancel(answer.job.job)).state == "cancelled"
    with pytest.raises(Refusal, match="no such job"):
        await jobs.cancel("f" * 16)


async def test_ended_jobs_are_forgotten_after_a_while_and_beyond_a_number() -> None:
    """What is remembered is bounded in number and in time; pages go through it, the newest first."""
    now = [0.0]
    jobs = Jobs(clock=lambda: now[0])
    for number in range(KEPT_MAX + 5):
        await ended(jobs, jobs.submit("x", f"n{number}", ASKED, Progress("", 0), failing).job.job)
    page = jobs.page(JobsQuery(limit=2))
    assert (page.kept, [job.name for job in page.jobs]) == (KEPT_MAX, [f"n{KEPT_MAX + 4}", f"n{KEPT_MAX + 3}"])
    following = jobs.page(JobsQuery(limit=2, before=page.next))
    assert following.jobs[0].name == f"n{KEPT_MAX + 2}"
    assert jobs.page(JobsQuery(state="done")).jobs == []
    now[0] = KEPT_SECONDS + 1
    assert jobs.page(JobsQuery()).kept == 0
