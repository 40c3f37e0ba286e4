"""Tables and short spellings of numbers, for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

GAP = "  "
NOTHING = "-"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, as wide as their widest cell."""
    lines = [tuple(headings), *(tuple(cell or NOTHING for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def size(count: float | None) -> str:
    """Bytes in three digits or so."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def percent(part: float | None, whole: float | None) -> str:
    """Empty where it is not known, or of nothing."""
    return "" if part is None or not whole else f"{100 * part / whole:.0f} %"


def age(stamp: str, now: datetime) -> str:
    """Since a time as Kubernetes writes it, in one unit."""
    try:
        begun = datetime.fromisoformat(stamp)
    except ValueError:
        return ""
    return span((now - begun.astimezone(UTC)).total_seconds())


def span(seconds: float) -> str:
    """A time in one unit."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
