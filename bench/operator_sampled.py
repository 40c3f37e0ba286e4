"""Runs the operator and counts where its processor time goes: a sample every few milliseconds, which costs next to nothing.

    python bench/operator_sampled.py FILE     (started by bench.operator with --profile)

FILE gets two tables when the operator ends: functions by the share of samples that they are anywhere in the stack of, and by those that they
are on top of. cProfile, which counts every call, makes small functions ten times as dear as they are.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from kvcommons_operator.main import main

SAMPLE_SECONDS = 0.005
ROWS_MAX = 90

inside: Counter[str] = Counter()
on_top: Counter[str] = Counter()


def sample(number: int, frame: FrameType | None) -> None:
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{'/'.join(Path(code.co_filename).parts[-3:])}:{code.co_qualname}")
        frame = frame.f_back
    inside.update(set(names))
    on_top.update(names[:1])


def table(title: str, counts: Counter[str]) -> str:
    total = sum(on_top.values()) or 1
    rows = [f"{100 * count / total:6.1f} %  {name}" for name, count in counts.most_common(ROWS_MAX)]
    return "\n".join([f"{title} ({total} samples)", *rows, ""])


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
    status = main([])
    signal.setitimer(signal.ITIMER_PROF, 0)
    Path(sys.argv[1]).write_text(table("anywhere in the stack", inside) + "\n" + table("on top", on_top))
    sys.exit(status)
