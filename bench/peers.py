"""What one node fetches from another over loopback, against bare TCP sockets that move the same bytes.

    python -m bench.peers [--sockets 4] [--payload-mib 2] [--mib 512] [--rounds 5] [--in-flight 4]

Prints one JSON line. A round is raw, fetch and TLS one after another, each between two processes and into memory as an arena's, each over as
many sockets; `fetch_over_raw` is the median over the rounds of fetch by raw. A fetch is verified (epoch, generation, XXH3 of each payload);
raw is read and forgotten. `zero_copy_share`: bytes that the owner sent without a copy; on loopback the kernel copies all the same and says
so, and the owner stops asking for it. TLS needs the program openssl for its certificates, and is left out without one.
"""

from __future__ import annotations

import argparse
import json
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
RUN_SECONDS_MAX = 300
LIMITS = {"fetch_over_raw": 0.85}


@dataclass(frozen=True)
class Case:
    sockets: int
    payload_bytes: int
    count: int
    in_flight: int


def load_program() -> Path:
    subprocess.run([sys.executable, ROOT / ".ci" / "native.py", "bench"], check=True)
    return ROOT / "build" / "bench" / "peer_load"


def measure_once(program: Path, way: str, case: Case, tls: tuple[Path, ...]) -> tuple[float, float]:
    """(bytes a second, share of the bytes that were sent without a copy)."""
    numbers = [case.sockets, case.payload_bytes, case.count, case.in_flight]
    done = subprocess.run(
        [str(program), "raw" if way == "raw" else "fetch", *map(str, numbers), *map(str, tls)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=True,
    )
    out = json.loads(done.stdout)
    return out["bytes"] / out["seconds"], out["zero_copy_bytes"] / out["bytes"]


def make_certificate(folder: Path) -> tuple[Path, ...]:
    """(authority, certificate, key) of one that signs itself; nothing without openssl."""
    program = shutil.which("openssl")
    if program is None:
        print("bench.peers: no openssl, so TLS is not measured: apt install openssl", file=sys.stderr)
        return ()
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=peer", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([program, *words], check=True, capture_output=True)
    return certificate, certificate, key


def measure(case: Case, rounds: int, folder: Path) -> None:
    program = load_program()
    tls = make_certificate(folder)
    ways = ["raw", "fetch", *(["fetch_tls"] if tls else [])]
    rates: dict[str, list[float]] = {way: [] for way in ways}
    shares: list[float] = []
    for number in range(rounds):
        for way in ways:
            rate, share = measure_once(program, way, case, tls if way == "fetch_tls" else ())
            rates[way].append(rate)
            if way == "fetch":
                shares.append(share)
        shown = ", ".join(f"{way} {values[-1] / 1e9:.2f}" for way, values in rates.items())
        print(f"round {number + 1}: {shown} GB/s", file=sys.stderr)
    figures: dict[str, object] = {f"gb_s_{way}": statistics.median(values) / 1e9 for way, values in rates.items()}
    figures |= {
        "zero_copy_share": statistics.median(shares),
        "sockets": case.sockets,
        "payload_bytes": case.payload_bytes,
    }
    ratios = {
        f"{way}_over_raw": statistics.median(ours / raw for ours, raw in zip(rates[way], rates["raw"], strict=True))
        for way in ways[1:]
    }
    report("peers", figures, LIMITS, ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=4)
    parser.add_argument("--payload-mib", type=float, default=2.0, help="of a shard")
    parser.add_argument("--mib", type=int, default=512, help="bytes a round and way")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=4, help="batches of 4 MiB at one time, as of one chain")
    arguments = parser.parse_args()
    payload = int(arguments.payload_mib * MIB) // 4096 * 4096
    case = Case(arguments.sockets, payload, arguments.mib * MIB // payload, arguments.in_flight)
    with tempfile.TemporaryDirectory(prefix="kvcommons-peers-") as folder:
        measure(case, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
