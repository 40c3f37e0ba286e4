"""What the demo saw, judged against what it promises; as a table for people and as JSON for machines. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

CHUNK_TOKENS: Final = 256
REUSE_RATIO_MIN: Final = 0.9
"""Of the whole chunks that were there to be reused."""
WARM_OVER_COLD_MAX: Final = 0.4

Expected = Literal["cold", "reused", "commons", "served"]
"""cold: nothing can be reused. reused: from whichever cache. commons: from the commons, because this replica's own cache
does not have it. served: only that it is answered, and rightly (the node is dead)."""


@dataclass(frozen=True)
class Row:
    """One request of the demo."""

    scenario: str
    step: str
    replica: str
    expected: Expected
    prompt_tokens: int
    reusable_tokens: int
    """Whole chunks of the prefix that an earlier prompt of this scenario had."""
    own_tokens: int
    commons_tokens: int
    computed_tokens: int
    ttft_seconds: float
    cold_ttft_seconds: float
    """Of this scenario's cold request; of this one, if it is that."""
    text: str
    reference_text: str
    reported: dict[str, object] | None = None
    """What the connector told the routers about this request; None where nothing came (the node was dead)."""

    @property
    def reuse_ratio(self) -> float | None:
        """Reused share of what could be reused; from the commons alone where it should come from there."""
        if self.reusable_tokens == 0:
            return None
        reused = self.commons_tokens + (0 if self.expected == "commons" else self.own_tokens)
        return min(1.0, reused / self.reusable_tokens)

    @property
    def warm_over_cold(self) -> float | None:
        return None if self.expected == "cold" else self.ttft_seconds / self.cold_ttft_seconds

    def _reason(self) -> str:
        """What the connector gave as the reason of a miss, if it did."""
        reason = (self.reported or {}).get("reason")
        return f" ({self.replica} says: {reason}; docs/vllm.md tells what that means)" if reason else ""

    @property
    def verdict(self) -> str:
        """In a few words, for the table: as promised, or what was."""
        if not self.failures():
            return "ok"
        if self.text != self.reference_text:
            return "NOT OK: expected the same text"
        wanted = {"cold": "nothing reused", "reused": f"{100 * REUSE_RATIO_MIN:.0f} % reused", "served": "an answer"}
        wanted["commons"] = f"{100 * REUSE_RATIO_MIN:.0f} % from the commons"
        ratio = self.reuse_ratio or 0.0
        slow = self.expected in ("reused", "commons") and ratio >= REUSE_RATIO_MIN
        return f"NOT OK: expected {f'at most {WARM_OVER_COLD_MAX} of cold' if slow else wanted[self.expected]}"

    def failures(self) -> list[str]:
        """What is not as promised."""
        where = f"{self.scenario}, {self.step}"
        found = []
        if self.text != self.reference_text:
            found.append(f"{where}: the text differs: {self.text!r} instead of {self.reference_text!r}")
        ratio = self.reuse_ratio
        if self.expected in ("reused", "commons") and (ratio is None or ratio < REUSE_RATIO_MIN):
            source = "from the commons" if self.expected == "commons" else "at all"
            found.append(
                f"{where}: of {self.reusable_tokens} tokens in whole chunks {100 * (ratio or 0):.0f} % were reused {source}, "
                f"not {100 * REUSE_RATIO_MIN:.0f} %{self._reason()}"
            )
        warm = self.warm_over_cold
        from_commons = self.expected != "served" and self.commons_tokens > self.own_tokens
        if from_commons and warm is not None and warm > WARM_OVER_COLD_MAX:
            found.append(f"{where}: first token after {warm:.2f} of the cold time, over {WARM_OVER_COLD_MAX}")
        return found


def reusable_tokens(prompt: Sequence[int], earlier: Sequence[Sequence[int]], block_tokens: int = 128) -> int:
    """Tokens in whole chunks of the longest prefix that some earlier prompt had; an engine computes its last block anew."""
    longest = max((_common(prompt, other) for other in earlier), default=0)
    usable = max(0, min(longest, (len(prompt) - 1) // block_tokens * block_tokens))
    return usable // CHUNK_TOKENS * CHUNK_TOKENS


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def failures(rows: Sequence[Row], others: Sequence[str] = ()) -> list[str]:
    """All that is not as promised; empty is success."""
    return [*others, *(failure for row in rows for failure in row.failures())]


def document(rows: Sequence[Row], found: Sequence[str], about: dict[str, object]) -> dict[str, object]:
    """The report as a JSON object."""
    return {
        "ok": not found,
        "failures": list(found),
        "limits": {"reuse_ratio_min": REUSE_RATIO_MIN, "warm_over_cold_max": WARM_OVER_COLD_MAX},
        "about": about,
        "rows": [
            {
                **asdict(row),
                "text_equal": row.text == row.reference_text,
                "reuse_ratio": row.reuse_ratio,
                "warm_over_cold": row.warm_over_cold,
                "verdict": row.verdict,
            }
            for row in rows
        ],
    }


HEADINGS: Final = (
    "",
    "asked",
    "replica",
    "tokens",
    "own cache",
    "commons",
    "computed",
    "reused",
    "first token",
    "of cold",
    "text",
    "verdict",
)
LEFT_COLUMNS: Final = frozenset({0, 1, 2, 10, 11})


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text: list[str] = []
    scenario = None
    for number, (cells, row) in enumerate(zip(lines, [None, *rows], strict=True)):
        if row is not None and row.scenario != scenario:
            scenario = row.scenario
            text.append(f"-- {scenario}")
        aligned = [
            cell.ljust(width) if column in LEFT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        text.append("  ".join(aligned[1:]).rstrip())
        if number == 0:
            text.append("-" * len(text[0]))
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    ratio, warm = row.reuse_ratio, row.warm_over_cold
    return (
        row.scenario,
        row.step,
        row.replica,
        str(row.prompt_tokens),
        str(row.own_tokens),
        str(row.commons_tokens),
        str(row.computed_tokens),
        "-" if ratio is None or row.expected == "cold" else f"{100 * ratio:.0f} %",
        f"{row.ttft_seconds:.2f} s",
        "cold" if warm is None else f"{warm:.2f}",
        "equal" if row.text == row.reference_text else "DIFFERS",
        row.verdict,
    )
