"""What is wrong, where, and what to do about it; for people and for machines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but somebody may wonder."""
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    about: str
    message: str
    remedy: str = ""


def ok(about: str, message: str) -> Finding:
    return Finding(Level.OK, about, message)


def note(about: str, message: str, remedy: str = "") -> Finding:
    return Finding(Level.NOTE, about, message, remedy)


def warning(about: str, message: str, remedy: str) -> Finding:
    return Finding(Level.WARNING, about, message, remedy)


def problem(about: str, message: str, remedy: str) -> Finding:
    return Finding(Level.PROBLEM, about, message, remedy)


MARKS = {Level.OK: "ok  ", Level.NOTE: "note", Level.WARNING: "WARN", Level.PROBLEM: "FAIL"}


def shown(found: Sequence[Finding]) -> str:
    """One line a finding, with what to do on the next, and a last line that sums up."""
    lines = []
    for one in found:
        lines.append(f"[{MARKS[one.level]}] {one.about}: {one.message}")
        if one.remedy:
            lines.append(f"       -> {one.remedy}")
    return "\n".join([*lines, "", summary(found)])


def summary(found: Iterable[Finding]) -> str:
    levels = [one.level for one in found]
    problems, warnings = levels.count(Level.PROBLEM), levels.count(Level.WARNING)
    if not problems and not warnings:
        return "Nothing is wrong."
    parts = [
        f"{count} {word}{'' if count == 1 else 's'}"
        for count, word in ((problems, "problem"), (warnings, "warning"))
        if count
    ]
    return f"{' and '.join(parts)}."


def document(found: Sequence[Finding]) -> dict[str, Any]:
    """For `-o json`."""
    return {
        "ok": all(one.level != Level.PROBLEM for one in found),
        "findings": [asdict(one) for one in found],
    }
