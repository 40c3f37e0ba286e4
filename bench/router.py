"""What the router costs: CPU of a request and of a streamed chunk, and the latency it adds, against nginx in the same run.

    python -m bench.router [--rounds 3] [--seconds 2] [--workers 1]

Four engines in C++ answer at once, a load generator in C++ asks; both share one core, what is measured has another. Each
round measures everything once, in turn. `router` runs with the index in a real Redis, as it is deployed; `router_alone`
without one; `nginx` only passes on (where it is installed; without it there are no ratios). CPU is that of the whole
process tree, kernel time included, for each request or token.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kvcommons_core import redis_server

from bench.common import report

SOURCES = Path(__file__).parent / "router_load"
ENGINES = 4
STREAM_TOKENS = 64
START_SECONDS_MAX = 20.0
LIMITS = {"cpu_us_1k": 80.0, "cpu_us_32k": 150.0, "cpu_us_chunk": 20.0}


class Case(NamedTuple):
    """One kind of load."""

    connections: int
    prompt_bytes: int
    tokens: int
    interval_us: int
    stream: bool
    think_us: int


CASES = {
    "1k": Case(32, 1024, 16, 0, False, 0),
    "32k": Case(32, 32 * 1024, 16, 0, False, 0),
    "chunk": Case(16, 1024, STREAM_TOKENS, 2000, True, 0),
    "latency_1k": Case(1, 1024, 16, 0, True, 2000),
    "latency_32k": Case(1, 32 * 1024, 16, 0, True, 2000),
}


@dataclass
class Target:
    """Something between the load and the engines; without a process it is the engines themselves."""

    name: str
    port: int
    pid: int | None
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    first_us: dict[str, list[float]] = field(default_factory=dict)
    rps: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").iterdir():
            todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants."""
    ticks = 0
    for one in tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cores() -> tuple[set[int], set[int]]:
    """Where the load and the engines run, and where what is measured does."""
    allowed = sorted(os.sched_getaffinity(0))
    return ({allowed[0]}, {allowed[1]}) if len(allowed) > 1 else ({allowed[0]}, {allowed[0]})


def build(folder: Path) -> tuple[Path, Path]:
    """The engines' and the load generator's programs."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise SystemExit("bench.router: a C++ compiler is needed: apt install g++")
    built = []
    for name in ("mock", "load"):
        subprocess.run([compiler, "-std=c++20", "-O2", "-o", folder / name, SOURCES / f"{name}.cpp"], check=True)
        built.append(folder / name)
    return built[0], built[1]


@contextlib.contextmanager
def process(command: Sequence[str | Path], core: set[int], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process on a core until the end of the block."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, core)), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
        )
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(15)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()
            for pipe in (started.stdin, started.stdout):
                if pipe is not None:
                    pipe.close()


def wait_for(log: Path, pattern: str, running: subprocess.Popen[bytes]) -> str:
    """The first group of a pattern, once it stands in a log."""
    end = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < end and running.poll() is None:
        found = re.search(pattern, log.read_text())
        if found is not None:
            return found.group(1)
        time.sleep(0.02)
    raise SystemExit(f"bench.router: {pattern!r} did not come:\n{log.read_text()[-2000:]}")


def wait_healthy(port: int) -> None:
    """Returns once a port answers /health well."""
    end = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"bench.router: nothing healthy on port {port}")


@contextlib.contextmanager
def router(folder: Path, name: str, ports: Sequence[int], core: set[int], *flags: str) -> Iterator[Target]:
    """The router before the engines."""
    log = folder / f"{name}.log"
    instances = [f"--instance=name=e{port},url=http://127.0.0.1:{port},model=mock" for port in ports]
    command = [sys.executable, "-m", "kvcommons_router", "--listen=127.0.0.1:0", *instances, *flags]
    with process(command, core, log) as running:
        port = int(wait_for(log, r"listening on http://127\.0\.0\.1:(\d+)", running))
        wait_healthy(port)
        yield Target(name, port, running.pid)


@contextlib.contextmanager
def nginx(folder: Path, program: str, ports: Sequence[int], core: set[int]) -> Iterator[Target]:
    """nginx before the engines, told to do as little as it can."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = folder / "nginx"
    home.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {home}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = "".join(f"server 127.0.0.1:{one}; " for one in ports)
    (home / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log crit;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; client_body_buffer_size 256k; client_max_body_size 64m; {temporary}\n"
        f"keepalive_requests 1000000; upstream engines {{ {servers} keepalive 512; keepalive_requests 1000000; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engines; proxy_http_version 1.1;\n"
        'proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    with process(
        [program, "-p", home, "-c", "nginx.conf", "-e", home / "error.log"], core, folder / "nginx.log"
    ) as run:
        wait_healthy(port)
        yield Target("nginx", port, run.pid)


def measure(load: Path, target: Target, name: str, seconds: float, core: set[int], seed: int) -> None:
    """One case of one target."""
    case = CASES[name]
    before = cpu_seconds(target.pid) if target.pid is not None else 0.0
    arguments = [
        target.port, case.connections, seconds, case.prompt_bytes, case.tokens, case.interval_us, int(case.stream),
        case.think_us, seed,
    ]  # fmt: skip
    command = ["taskset", "-c", ",".join(map(str, core)), str(load), *map(str, arguments)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=seconds + 30).stdout)
    target.errors += found["errors"]
    target.first_us.setdefault(name, []).append(found["first_p50_us"])
    target.rps.setdefault(name, []).append(found["rps"])
    if target.pid is not None:
        units = found["requests"] * (STREAM_TOKENS if name == "chunk" else 1)
        target.cpu_us.setdefault(name, []).append((cpu_seconds(target.pid) - before) * 1e6 / max(units, 1))
    print(f"{name:12} {target.name:13} {found}", file=sys.stderr)


def rounds(options: argparse.Namespace, load: Path, targets: Sequence[Target], core: set[int]) -> None:
    """Measures every case of every target, in another order each round."""
    for number in range(options.rounds):
        for name in CASES:
            for at in range(len(targets)):
                target = targets[(at + number) % len(targets)]
                if target.pid is not None or name.startswith("latency"):
                    measure(load, target, name, options.seconds, core, number * 100 + at)


def summary(targets: Sequence[Target]) -> tuple[dict[str, object], dict[str, object]]:
    """Figures and ratios; a figure is the median of its rounds."""
    by_name = {target.name: target for target in targets}

    def cpu(target: str, case: str) -> float:
        return statistics.median(by_name[target].cpu_us[case])

    def latency(target: str, case: str) -> float:
        return statistics.median(by_name[target].first_us[case])

    figures: dict[str, object] = {"errors": sum(target.errors for target in targets)}
    ratios: dict[str, object] = {}
    for target, suffix in (("router", ""), ("router_alone", "_alone"), ("nginx", "_nginx")):
        if target not in by_name:
            continue
        for case in ("1k", "32k", "chunk"):
            figures[f"cpu_us_{case}{suffix}"] = round(cpu(target, case), 1)
        for case in ("latency_1k", "latency_32k"):
            figures[f"added_us_{case.removeprefix('latency_')}{suffix}"] = round(
                latency(target, case) - latency("direct", case), 1
            )
        figures[f"rps_1k{suffix}"] = round(statistics.median(by_name[target].rps["1k"]), 1)
    if "nginx" in by_name:
        for case in ("1k", "32k", "chunk"):
            ratios[f"cpu_{case}_over_nginx"] = round(cpu("router", case) / cpu("nginx", case), 2)
    return figures, ratios


def main() -> int:
    """Runs the benchmark and prints its line; 1 if a request failed, for then the figures mean nothing."""
    parser = argparse.ArgumentParser(prog="bench.router", description="CPU and latency of the router against nginx.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    load_core, own_core = cores()
    program = shutil.which("nginx")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvc-bench-")))
        mock, load = build(folder)
        engines = stack.enter_context(process([mock, str(ENGINES)], load_core, folder / "mock.log"))
        assert engines.stdout is not None
        ports = [int(port) for port in engines.stdout.readline().split()]
        redis = stack.enter_context(redis_server.running())
        os.sched_setaffinity(redis.pid, load_core)
        workers = f"--workers={options.workers}"
        targets = [
            stack.enter_context(router(folder, "router", ports, own_core, workers, f"--redis={redis.url}")),
            stack.enter_context(router(folder, "router_alone", ports, own_core, workers)),
            Target("direct", ports[0], None),
        ]
        if program is None:
            print("bench.router: no nginx on PATH, so no ratios (apt install nginx-light)", file=sys.stderr)
        else:
            targets.append(stack.enter_context(nginx(folder, program, ports, own_core)))
        rounds(options, load, targets, load_core)
    figures, ratios = summary(targets)
    figures["nginx"] = program is not None
    report("router", figures, LIMITS, ratios)
    return 1 if figures["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
