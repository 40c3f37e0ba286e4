"""Processor time of this process and of all that it has started, by what they are. Unlike the clock, it is the same on a busy machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

TICKS_S = os.sysconf("SC_CLK_TCK")
# The first whose word is in a command line; what an engine's API server has started is the engine's core.
PARTS = (
    ("api", "vllm.entrypoints.openai.api_server"),
    ("router", "kvcommons_router"),
    ("holder", "kvcommons_node.holder"),
    ("node", "kvcommons_node"),
    ("lmcache", "lmcache"),
    ("index", "redis-server"),
    ("index", "valkey-server"),
)


def processor_seconds(root: int | None = None, proc: Path = Path("/proc")) -> dict[str, float]:
    """By part: client (this process), api, engine, router, node, ...; user and system together."""
    root = os.getpid() if root is None else root
    parents, seconds = _table(proc)
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    totals: dict[str, float] = {}
    open_pids = [(root, "client")]
    while open_pids:
        pid, part = open_pids.pop()
        totals[part] = totals.get(part, 0.0) + seconds.get(pid, 0.0)
        open_pids += [(child, _part(proc, child, part)) for child in children.get(pid, [])]
    return totals


def grown_ms(before: Mapping[str, float], after: Mapping[str, float], requests: int) -> dict[str, float]:
    """Milliseconds a request, by part, and all together."""
    grown = {part: (seconds - before.get(part, 0.0)) * 1e3 / requests for part, seconds in after.items()}
    found = {part: round(ms, 1) for part, ms in sorted(grown.items()) if ms >= 0.05}
    return found | {"all": round(sum(grown.values()), 1)}


def _table(proc: Path) -> tuple[dict[int, int], dict[int, float]]:
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        fields = text.rpartition(")")[2].split()  # the name may hold anything, blanks too
        parents[int(folder.name)] = int(fields[1])
        seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / TICKS_S
    return parents, seconds


def _part(proc: Path, pid: int, parent: str) -> str:
    """What a child of a part is."""
    if parent in ("api", "engine"):
        return "engine"
    try:
        line = (proc / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return parent
    if "guard.py" in line:
        return "guard"
    return next((part for part, word in PARTS if word in line), parent)
