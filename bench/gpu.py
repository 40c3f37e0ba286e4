"""Copies between paged GPU memory and pinned memory of the host, each against the peak of the same link in the same run.

    python -m bench.gpu [--device 0] [--mib 256] [--rounds 5] [--quick]

Prints one JSON line and writes it to bench/results/gpu-NAME.json. The peak of a way is one `cuMemcpyAsync` of all bytes. Runs lie at random
places of the GPU's memory; every method's bytes are compared afterwards. `fused_quantise`: codes and scales that a kernel writes into the
host's memory, in bytes on the wire over the peak of stores. `rope`: bytes read and written in place over a copy within the GPU's memory.
Needs a GPU, its driver, torch with CUDA, and the kernels (`make gpu`). Ends with 3, and a line that says what is missing, without them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kvcommons_connector import devices
from kvcommons_core import _native

from bench.common import report

KIB, MIB = 1 << 10, 1 << 20
RESULTS: Final = Path(__file__).resolve().parent / "results"
EXIT_WITHOUT_GPU: Final = 3
METHODS: Final = ("loop", "batch", "warps", "ring", "staged")
RUN_KIB: Final = (4, 8, 16, 28, 64, 256, 2048)
SMALL_KIB: Final = (4, 8, 16, 28)
LIMITS: Final = {
    "dma_256k": 0.93,
    "dma_64k": 0.90,
    "small_h2d": 0.85,
    "staged_d2h": 0.90,
    "fused_quantise": 0.85,
    "rope": 0.80,
}
HEAD_DIM: Final = 128
LOOP_RUNS_MAX: Final = 16_384
"""More single copies than this take seconds and say nothing new."""


class World:
    """Paged memory of the GPU, pinned memory of the host, and a device to copy by."""

    def __init__(self, torch: Any, ordinal: int, nbytes: int, rounds: int) -> None:
        self.torch, self.nbytes, self.rounds = torch, nbytes, rounds
        self.gpu = torch.device("cuda", ordinal)
        self.paged = torch.randint(0, 1 << 30, (nbytes,), dtype=torch.int32, device=self.gpu).view(torch.uint8)
        self.host = torch.empty(nbytes, dtype=torch.uint8)
        self.host.random_(0, 256)
        self.copies = _native.GpuCopies(f"cuda:{ordinal}", kernels=devices.kernels(), driver=devices.driver())
        if not self.copies.pin(self.host.data_ptr(), nbytes):
            raise RuntimeError(
                "the host's memory can't be registered with the driver: raise the limit of locked memory"
            )
        self._random = random.Random(7)

    def close(self) -> None:
        self.copies.unpin(self.host.data_ptr())

    def places(self, run_bytes: int) -> list[int]:
        """Random blocks of the paged memory, which has four times the room."""
        return self._random.sample(range(4 * self.nbytes // run_bytes), self.nbytes // run_bytes)

    def runs(self, way: str, run_bytes: int, places: list[int]) -> array[int]:
        runs = array("Q")
        for index, place in enumerate(places):
            near, far = self.host.data_ptr() + index * run_bytes, self.paged.data_ptr() + place * run_bytes
            runs.extend((near, far, run_bytes) if way == "load" else (far, near, run_bytes))
        return runs

    def seconds(self, action: Callable[[], str]) -> float | None:
        """The median of the rounds after one that warms up; None where the device refuses."""
        taken = []
        for _ in range(self.rounds + 1):
            start = time.perf_counter()
            state = action()
            taken.append(time.perf_counter() - start)
            if state == "refused":
                return None
            if state != "done":
                raise RuntimeError(f"a copy ended as {state}")
        return statistics.median(taken[1:])

    def same(self, run_bytes: int, places: list[int]) -> bool:
        """Whether the host's runs are the paged ones, every byte."""
        blocks = self.paged[: len(self.paged) // run_bytes * run_bytes].view(-1, run_bytes)
        index = self.torch.tensor(places, device=self.gpu)
        mine = self.host[: len(places) * run_bytes].view(-1, run_bytes)
        return all(
            bool((blocks[index[at : at + 4096]].cpu() == mine[at : at + 4096]).all())
            for at in range(0, len(places), 4096)
        )

    def peak(self, way: str) -> float:
        """Bytes a second of one contiguous copy."""
        near, far = self.host.data_ptr(), self.paged.data_ptr()
        run = array("Q", (near, far, self.nbytes) if way == "load" else (far, near, self.nbytes))
        taken = self.seconds(lambda: self.copies.copy(way, "loop", run))
        assert taken is not None
        return self.nbytes / taken


def copy_rows(world: World, peaks: dict[str, float], run_kib: tuple[int, ...]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for kib in run_kib:
        run_bytes = kib * KIB
        places = world.places(run_bytes)
        for way in ("load", "store"):
            runs = world.runs(way, run_bytes, places)
            for method in (*METHODS, ""):
                if method == "loop" and len(places) > LOOP_RUNS_MAX:
                    continue
                world.host.random_(0, 256)
                taken = world.seconds(lambda w=way, m=method, r=runs: world.copies.copy(w, m, r))  # type: ignore[misc]
                if taken is None:
                    continue
                speed = world.nbytes / taken
                rows.append(
                    {
                        "kib": kib,
                        "way": way,
                        "method": method or "chosen",
                        "gb_s": round(speed / 1e9, 2),
                        "ratio": round(speed / peaks[way], 3),
                        "same": world.same(run_bytes, places),
                    }
                )
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def quantised(world: World, peak: float) -> float:
    """Wire bytes a second of int8 by rows, from the GPU's pages straight into the host's memory, over the peak of stores."""
    torch = world.torch
    rows = world.nbytes // (2 * HEAD_DIM)
    world.paged.view(torch.int16)[:].random_(0x3C00, 0x4000)  # bfloat16 numbers of a common size
    blocks = torch.zeros(1, dtype=torch.int32, device=world.gpu)
    most = torch.empty(rows, dtype=torch.int32, device=world.gpu)
    grid = (world.paged.data_ptr(), 0, 0, 2 * HEAD_DIM, 1, rows)
    codes, params = world.host.data_ptr(), world.host.data_ptr() + rows * HEAD_DIM
    taken = world.seconds(
        lambda: world.copies.quantise(
            codec="int8_rows",
            element="bfloat16",
            grid=grid,
            blocks=blocks.data_ptr(),
            tiles=rows,
            count=1,
            width=HEAD_DIM,
            group=1,
            params=params,
            codes=codes,
            most=most.data_ptr(),
        )
    )
    assert taken is not None
    return rows * (HEAD_DIM + 2) / taken / peak


def turned(world: World) -> float:
    """Bytes a second of the rotation in place over those of a copy within the GPU, reads and writes counted in both."""
    torch = world.torch
    rows = world.nbytes // (2 * HEAD_DIM)
    blocks = torch.zeros(1, dtype=torch.int32, device=world.gpu)
    angles = torch.linspace(0, 1, HEAD_DIM // 2, device=world.gpu)
    cosines, sines = torch.cos(angles), torch.sin(angles)
    torch.cuda.synchronize(world.gpu)
    grid = (world.paged.data_ptr(), 0, 0, 2 * HEAD_DIM, 1, rows)
    taken = world.seconds(
        lambda: world.copies.turn(
            element="bfloat16",
            grid=grid,
            blocks=blocks.data_ptr(),
            rows=rows,
            neox=True,
            first=0,
            dims=HEAD_DIM,
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
        )
    )
    near, far = world.paged.data_ptr(), world.paged.data_ptr() + 2 * world.nbytes
    run = array("Q", (near, far, world.nbytes))
    limit = world.seconds(lambda: world.copies.copy("store", "loop", run))
    assert taken is not None
    assert limit is not None
    return limit / taken


def least(rows: list[dict[str, object]], way: str, methods: tuple[str, ...], kibs: tuple[int, ...]) -> float | None:
    """Of the best of these methods for each length of runs, the worst ratio."""
    best = []
    for kib in kibs:
        found = [float(str(r["ratio"])) for r in rows if r["kib"] == kib and r["way"] == way and r["method"] in methods]
        if not found:
            return None
        best.append(max(found))
    return min(best)


def ratios_of(rows: list[dict[str, object]]) -> dict[str, object]:
    dma = ("loop", "batch")
    both = {
        kib: [value for way in ("load", "store") if (value := least(rows, way, dma, (kib,))) is not None]
        for kib in (64, 256)
    }
    small = tuple(kib for kib in SMALL_KIB if any(row["kib"] == kib for row in rows))
    found: dict[str, float | None] = {
        "dma_256k": min(both[256], default=None),
        "dma_64k": min(both[64], default=None),
        "small_h2d": least(rows, "load", ("warps", "ring"), small),
        "staged_d2h": least(rows, "store", ("staged",), small),
    }
    return {name: value for name, value in found.items() if value is not None}


def why_not(ordinal: int) -> str:
    """What this machine lacks, or nothing."""
    usable, why = _native.gpu_status(f"cuda:{ordinal}", kernels=devices.kernels(), driver=devices.driver())
    if not usable:
        return why
    try:
        import torch
    except ImportError:
        return "torch is not installed: it holds the GPU's memory here"
    return "" if torch.cuda.is_available() else "torch has no CUDA: install its GPU build"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument(
        "--mib", type=int, default=256, help="bytes of each copy; the GPU's memory holds four times as much"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few bytes, lengths and rounds: for a sanitizer")
    chosen = parser.parse_args()
    if missing := why_not(chosen.device):
        print(f"nothing measured: {missing}", file=sys.stderr)
        return EXIT_WITHOUT_GPU
    import torch

    nbytes = (8 if chosen.quick else chosen.mib) * MIB
    run_kib = (4, 64, 256) if chosen.quick else RUN_KIB
    world = World(torch, chosen.device, nbytes, 1 if chosen.quick else chosen.rounds)
    peaks = {way: world.peak(way) for way in ("load", "store")}
    rows = copy_rows(world, peaks, run_kib)
    ratios = {**ratios_of(rows), "fused_quantise": quantised(world, peaks["store"]), "rope": turned(world)}
    world.close()
    figures = {f"peak_{way}_gb_s": peak / 1e9 for way, peak in peaks.items()}
    wrong = [row for row in rows if not row["same"]]
    report("gpu", {**figures, "wrong": len(wrong)}, LIMITS, ratios)
    if not chosen.quick:
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(chosen.device).lower()).strip("-")
        RESULTS.mkdir(exist_ok=True)
        written = {
            "machine": world.copies.description,
            "mib": chosen.mib,
            "figures": figures,
            "ratios": ratios,
            "limits": LIMITS,
            "rows": rows,
            "costs": world.copies.costs(),
        }
        (RESULTS / f"gpu-{name}.json").write_text(json.dumps(written, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
