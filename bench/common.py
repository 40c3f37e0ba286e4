"""What the benchmarks share: percentiles, rounds of rivals side by side, and the one line at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

Figures = Mapping[str, object]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all do not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("percentile of nothing: measure at least once")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


def report(name: str, figures: Figures, limits: Figures, ratios: Figures, *, digits: int = 3) -> None:
    """Print the benchmark's result as the last line of stdout: one JSON object."""

    def rounded(values: Figures) -> dict[str, object]:
        return {key: round(value, digits) if isinstance(value, float) else value for key, value in values.items()}

    line = {"name": name, "figures": rounded(figures), "limits": rounded(limits), "ratios": rounded(ratios)}
    sys.stderr.flush()
    print(json.dumps(line), flush=True)
