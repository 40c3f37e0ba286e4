"""The disk tier's reads and writes against fio's on the same file system, and its restart after kill -9.

    python -m bench.disk [--folder DIR] [--payload-mib 2] [--mib 512] [--rounds 3] [--extents 10000 100000]

Prints one JSON line. A round is fio, io_uring and threads one after another, each writing (then reading, in random order) as many bytes in
pieces as large, by O_DIRECT, from files of the same size that were written whole before; ratios are medians over rounds. fio runs by
io_uring where this machine allows it, else by threads; its buffers are ordinary pages, ours are made as the arena's are, of huge pages where
the kernel gives them, of which a device takes larger pieces. `restart_N`: N extents of 4 KiB are written, the process is killed by SIGKILL, the
page cache is dropped (root), and the next one opens them: seconds until it answers. A million takes 8.2 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.common import report

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
IN_FLIGHT = 32
EXTENT_BYTES = 8192  # a header block and a payload of one block
RUN_SECONDS_MAX = 900
LIMITS = {"read_over_fio": 0.9, "write_over_fio": 0.85, "restart_s_per_million_extents": 5.0}
FIO_THREADS = 16


@dataclass(frozen=True)
class Case:
    folder: Path
    payload_bytes: int
    nbytes: int

    @property
    def count(self) -> int:
        return self.nbytes // self.payload_bytes

    @property
    def capacity_bytes(self) -> int:
        """Twice the bytes of a round, so that what was written last is there to be read."""
        return 2 * self.nbytes


def load_program() -> Path:
    subprocess.run([sys.executable, ROOT / ".ci" / "native.py", "bench"], check=True)
    return ROOT / "build" / "bench" / "disk_load"


def run(*command: str | Path, killed: bool = False) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    if done.returncode != (-9 if killed else 0):
        raise SystemExit(f"bench.disk: {command[0]} ended with {done.returncode}")
    return done.stdout


class Tier:
    """One engine's tier, in a folder of its own; each call is a process of its own."""

    def __init__(self, program: Path, engine: str, case: Case) -> None:
        self._program, self._engine, self._case = program, engine, case
        self._folder = case.folder / engine
        self._folder.mkdir()
        self._next = 0

    def _call(self, what: str, first: int) -> float:
        case = self._case
        out = json.loads(
            run(
                self._program, what, self._folder, str(case.capacity_bytes), str(segment_bytes(case.capacity_bytes)), self._engine,
                str(case.payload_bytes), str(first), str(case.count), str(IN_FLIGHT),
            )
        )  # fmt: skip
        if out["ok"] != case.count:
            raise SystemExit(f"bench.disk: {self._engine} did {out['ok']} of {case.count} {what}s")
        return float(out["bytes"]) / float(out["seconds"])

    def write(self) -> float:
        self._next += self._case.count
        return self._call("put", self._next)

    def read(self) -> float:
        return self._call("get", self._next)


class Fio:
    def __init__(self, case: Case, engine: str) -> None:
        self._case, self._engine = case, engine
        (case.folder / "fio").mkdir()

    def _call(self, way: str, nbytes: int) -> float:
        """Bytes a second. Without io_uring each of sixteen threads has a part of the file of its own."""
        jobs, depth = (1, IN_FLIGHT) if self._engine == "io_uring" else (FIO_THREADS, 1)
        part = self._case.capacity_bytes // jobs // self._case.payload_bytes * self._case.payload_bytes
        out = run(
            "fio", "--name=limit", f"--filename={self._case.folder}/fio/file", f"--size={part}", f"--offset_increment={part}",
            f"--rw={way}", f"--bs={self._case.payload_bytes}", "--direct=1", "--randrepeat=0", "--norandommap=1", "--thread",
            f"--ioengine={self._engine}", f"--iodepth={depth}", f"--numjobs={jobs}", "--group_reporting",
            f"--io_size={nbytes // jobs}", "--output-format=json",
        )  # fmt: skip
        job = json.loads(out[out.index("{") :])["jobs"][0]["write" if "write" in way else "read"]
        return float(job["io_bytes"]) / (float(job["runtime"]) / 1e3)

    def fill(self) -> None:
        self._call("write", self._case.capacity_bytes)

    def write(self) -> float:
        return self._call("write", self._case.nbytes)

    def read(self) -> float:
        return self._call("randread", self._case.nbytes)


def segment_bytes(capacity_bytes: int) -> int:
    """As large as the default where the capacity allows sixteen of them."""
    return max(min(128 * MIB, capacity_bytes // 16), MIB) // 4096 * 4096


def io_uring_allowed(program: Path, folder: Path) -> bool:
    probe = folder / "probe"
    probe.mkdir()
    command = [str(program), "put", str(probe), str(4 * MIB), str(MIB), "io_uring", "4096", "0", "1", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(probe)
    if done.returncode != 0:
        print(f"bench.disk: {done.stderr.strip()}", file=sys.stderr)
    return done.returncode == 0


def rates(case: Case, program: Path, engines: list[str], rounds: int) -> dict[str, list[float]]:
    fio = Fio(case, "io_uring" if "io_uring" in engines else "psync") if shutil.which("fio") else None
    rivals: dict[str, Fio | Tier] = {engine: Tier(program, engine, case) for engine in engines}
    if fio is not None:
        rivals = {"fio": fio, **rivals}
        fio.fill()
    for rival in rivals.values():  # the whole of each file is written before anything is timed
        if isinstance(rival, Tier):
            rival.write()
            rival.write()
    taken: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, rival in rivals.items():
            taken.setdefault(f"write_{name}", []).append(rival.write())
        for name, rival in rivals.items():
            taken.setdefault(f"read_{name}", []).append(rival.read())
        print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1] / 1e9:.2f}" for k, v in taken.items()), file=sys.stderr)
    return taken


def restart(program: Path, folder: Path, engine: str, extents: int) -> dict[str, float]:
    home = folder / f"restart-{extents}"
    home.mkdir()
    capacity = max(64 * MIB, extents * EXTENT_BYTES * 6 // 5)
    segment = segment_bytes(capacity)
    common = (program, "put", home, str(capacity), str(segment), engine, "4096")
    run(*common, "0", str(extents), "256", "kill", killed=True)
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    out = json.loads(run(*common, str(extents), "1", "1"))
    shutil.rmtree(home)
    if out["recovered"] != extents:
        raise SystemExit(f"bench.disk: {out['recovered']} of {extents} extents were found again")
    return {"seconds": out["open_seconds"], "metadata_bytes": out["metadata_bytes"] / out["shards"]}


def measure(case: Case, rounds: int, extents: list[int]) -> None:
    program = load_program()
    engines = [*(["io_uring"] if io_uring_allowed(program, case.folder) else []), "threads"]
    taken = rates(case, program, engines, rounds)
    figures: dict[str, object] = {f"gb_s_{name}": statistics.median(values) / 1e9 for name, values in taken.items()}
    ratios: dict[str, float] = {}
    for way in ("read", "write") if "read_fio" in taken else ():
        for engine in engines:
            pairs = zip(taken[f"{way}_{engine}"], taken[f"{way}_fio"], strict=True)
            ratios[f"{way}_over_fio_{engine}"] = statistics.median(ours / fio for ours, fio in pairs)
        ratios[f"{way}_over_fio"] = min(value for key, value in ratios.items() if key.startswith(way))
    if not ratios:
        print("bench.disk: no fio, so no limit to compare with: apt install fio", file=sys.stderr)
    for count in extents:
        result = restart(program, case.folder, engines[0], count)
        figures[f"restart_s_{count}"] = result["seconds"]
        figures[f"metadata_bytes_{count}"] = result["metadata_bytes"]
    report("disk", figures, LIMITS, ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None, help="on the device to measure; TMPDIR otherwise")
    parser.add_argument("--payload-mib", type=float, default=2.0, help="of a shard")
    parser.add_argument("--mib", type=int, default=512, help="bytes a round and way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--extents", type=int, nargs="*", default=[10_000, 100_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvcommons-disk-", dir=arguments.folder) as folder:
        payload = int(arguments.payload_mib * MIB) // 4096 * 4096
        measure(Case(Path(folder), payload, arguments.mib * MIB), arguments.rounds, arguments.extents)


if __name__ == "__main__":
    main()
