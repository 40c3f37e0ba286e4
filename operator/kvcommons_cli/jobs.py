"""List a node's jobs, follow one with its progress, or end one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kvcommons_cli import control, spread, tables, talk

HEADINGS = ("JOB", "KIND", "NAME", "STATE", "PROGRESS", "FAILED", "RAN", "AGE")
BAR_CHARACTERS = 24
POLL_SECONDS = 0.5
INTERRUPTED_STATUS = 130
OVER = ("done", "failed", "cancelled")


def main(argv: Sequence[str] | None = None) -> int:
    parser = control.parser("jobs", __doc__)
    parser.add_argument("job", nargs="?", default="", help="only this one")
    parser.add_argument("--state", choices=("waiting", "running", *OVER), default="", help="only those in this state")
    act = parser.add_mutually_exclusive_group()
    act.add_argument("--follow", action="store_true", help="show the progress of the one until it has ended")
    act.add_argument("--cancel", action="store_true", help="end the one; what it did stays done")
    spread.add_nodes(parser)
    control.add_output(parser)
    options = parser.parse_args(argv)
    if (options.follow or options.cancel) and not options.job:
        parser.error("--follow and --cancel want a job")
    return control.told("jobs", lambda: _act(options))


def _act(options: argparse.Namespace) -> int:
    if options.follow:
        return follow(options, options.job)
    if options.cancel:
        job = control.ask(options, "POST", "/v1/jobs/cancel", {"job": options.job})
        return control.show(job) if options.output == "json" else show({"jobs": [job]})
    query = {name: value for name, value in (("job", options.job), ("state", options.state)) if value}
    return spread.run(options, spread.Call("jobs", "GET", "/v1/jobs", {**query, "limit": 500}), show)


def show(answer: Mapping[str, Any]) -> int:
    found = control.items(answer, "jobs")
    sys.stdout.write((tables.table(HEADINGS, [_row(job) for job in found]) if found else "no jobs") + "\n")
    for job in found:
        if job["error"]:
            sys.stdout.write(f"{job['job']}: {job['error']}\n")
    return 0


def _row(job: Mapping[str, Any]) -> tuple[str, ...]:
    progress = job["progress"]
    return (
        job["job"],
        job["kind"],
        job["name"],
        job["state"],
        f"{progress['done']}/{progress['total']} {progress['unit']}",
        str(progress["failed"]),
        tables.span(job["running_seconds"]),
        tables.span(job["age_seconds"]),
    )


def words(job: Mapping[str, Any]) -> str:
    """A bar and what it stands for."""
    progress = job["progress"]
    ended = progress["done"] + progress["failed"]
    full = min(BAR_CHARACTERS, BAR_CHARACTERS * ended // max(1, progress["total"]))
    failed = f", {progress['failed']} failed" if progress["failed"] else ""
    bar = f"[{'#' * full}{'.' * (BAR_CHARACTERS - full)}]"
    return f"{bar} {ended}/{progress['total']} {progress['unit']}{failed}, {job['state']}"


def follow(options: argparse.Namespace, job_id: str) -> int:
    """Until it has ended; the status is 1 where it did not do all of it. Ctrl-C leaves it running.

    :raises talk.TalkError: if the node forgets it or does not answer."""
    while True:
        found = control.items(control.ask(options, "GET", f"/v1/jobs?job={job_id}"), "jobs")
        if not found:
            raise talk.TalkError("the node", 200, f"it knows no job {job_id}: it has restarted, or forgot it")
        job = found[0]
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{words(job)}")
            sys.stderr.flush()
        if job["state"] in OVER:
            break
        time.sleep(POLL_SECONDS)
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    if options.output == "json":
        control.show(job)
    else:
        sys.stdout.write(f"{words(job)}{told(job)}\n")
    return 0 if job["state"] == "done" and not job["progress"]["failed"] else control.REFUSED_STATUS


def begin(options: argparse.Namespace, path: str, body: dict[str, object]) -> int:
    """Begins a job and, unless detached, shows it until its end."""
    answer = control.ask(options, "POST", path, body)
    job = answer["job"]
    if options.detach:
        return control.show(answer) if options.output == "json" else show({"jobs": [job]})
    try:
        return follow(options, str(job["job"]))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nit goes on; `kvcommons jobs {job['job']} --follow` shows it, --cancel ends it\n")
        return INTERRUPTED_STATUS


def told(job: Mapping[str, Any]) -> str:
    """How it ended: its result's numbers and its error."""
    result = [f"{value} {name}" for name, value in job["result"].items() if isinstance(value, int)]
    failures = [str(one) for one in job["result"].get("failures", ())]
    lines = [", ".join(result)] if result else []
    lines += [job["error"]] if job["error"] else []
    return "".join(f"\n{line}" for line in [*lines, *failures])
