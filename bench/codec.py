"""Codecs: bytes saved, speed over memcpy of the same bytes in the same rounds, and what they cost in quality on SmolLM2.

    python -m bench.codec [--passages 4] [--context 1024] [--text 128] [--answer 64] [--mib 16] [--rounds 9] [--only speed|quality]

Prints one JSON line. Speeds are of the slot's bytes by one thread's processor time, on KV of 8 heads of 128 channels in bfloat16 with
random normal values. `X_payload_over_raw_128` is of that slot, `X_payload_over_raw` of SmolLM2's own KV, heads of 64. `X_perplexity` is
that of the text behind a context whose KV went through codec X; `X_same_next_token` says how often the likeliest next token is the one
that exact KV gives, along that text; `X_same_greedy_token` the same along the exact greedy answer, and
`X_greedy_tokens_before_first_difference` how many tokens of that answer X gives too, in the mean.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from kvcommons_core import _native
from kvcommons_core.codecs import CodecSpec, parse_codec

from bench.common import report

SPECS = ("fp8-e4m3", "int8", "int4", "int4:group=64", "k16v8", "lossless")
WANTED = {
    "fp8-e4m3": (0.6, 1.0),
    "int8": (1.2, 1.2),
    "int4": (1.2, 1.3),
    "int4:group=64": (1.2, 1.3),
}
"""Encode and decode over memcpy that are aimed at."""
PAGE_BYTES = 4_096
HEADS, HEAD_SIZE, BLOCKS, BLOCK_TOKENS = 8, 128, 16, 16


class Speed:
    """One codec and memcpy by turns, over slots that no cache holds."""

    def __init__(self, nbytes: int) -> None:
        layer_bytes = HEADS * HEAD_SIZE * 2 * BLOCKS * BLOCK_TOKENS * 2
        layers = max(1, nbytes // layer_bytes)
        self.shape: _native.CodecShape = (
            "bfloat16",
            "HPN",
            layers,
            BLOCKS,
            BLOCK_TOKENS,
            HEADS,
            HEAD_SIZE,
            HEAD_SIZE,
        )
        values = np.random.default_rng(3).normal(size=layers * layer_bytes // 2).astype("f4")
        self.raw = _aligned(values.nbytes // 2).view("u2")
        self.raw[:] = (values.view("u4") >> 16).astype("u2")
        self.back = _aligned(self.raw.nbytes).view("u2")

    def memcpy(self) -> float:
        return self._seconds(
            lambda: _native.copy_bytes(_address(self.back), _address(self.raw), self.raw.nbytes, kernel="memcpy")
        )

    def measure(self, spec: CodecSpec, rounds: int) -> dict[str, float]:
        """Medians: GB/s each way, and ratios to memcpy round by round."""
        name = spec.codec.name
        out: Any = _aligned(_native.codec_bytes_max(name, self.shape, spec.group))
        written = _native.codec_encode(name, self.shape, self.raw, out, spec.group)
        rates: dict[str, list[float]] = {"encode": [], "decode": [], "memcpy": []}
        for _ in range(rounds):
            rates["memcpy"].append(self.memcpy())
            rates["encode"].append(
                self._seconds(lambda: _native.codec_encode(name, self.shape, self.raw, out, spec.group))
            )
            rates["decode"].append(self._seconds(lambda: _native.codec_decode(out[:written], self.shape, self.back)))
        result = {f"{way}_gb_s": self.raw.nbytes / statistics.median(took) / 1e9 for way, took in rates.items()}
        for way in ("encode", "decode"):
            result[f"{way}_over_memcpy"] = statistics.median(
                limit / took for limit, took in zip(rates["memcpy"], rates[way], strict=True)
            )
        return result | {"payload_over_raw": written / self.raw.nbytes}

    @staticmethod
    def _seconds(call: Callable[[], object]) -> float:
        start = time.thread_time()
        call()
        return time.thread_time() - start


def _aligned(nbytes: int) -> Any:
    """Bytes that begin at a page, as an arena's slots do."""
    memory: Any = np.zeros(nbytes + PAGE_BYTES, "u1")
    return memory[-_address(memory) % PAGE_BYTES :][:nbytes]


def _address(array: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(array))


def speeds(specs: Sequence[CodecSpec], nbytes: int, rounds: int) -> tuple[dict[str, object], dict[str, object]]:
    """(figures, ratios)."""
    speed = Speed(nbytes)
    speed.memcpy()  # touches what is timed
    figures: dict[str, object] = {"isa": _native.codec_isas()[-1]}
    ratios: dict[str, object] = {}
    for spec in specs:
        made = speed.measure(spec, rounds)
        for way in ("encode", "decode"):
            figures[f"{spec}_{way}_gb_s"] = made[f"{way}_gb_s"]
            ratios[f"{spec}_{way}_over_memcpy"] = made[f"{way}_over_memcpy"]
        figures[f"{spec}_payload_over_raw_128"] = made["payload_over_raw"]
        figures["memcpy_gb_s"] = made["memcpy_gb_s"]
    return figures, ratios


def quality(specs: Sequence[CodecSpec], options: argparse.Namespace) -> tuple[dict[str, object], dict[str, object]]:
    """(figures, ratios)."""
    from kvcommons_cli.model import make_smollm2

    from bench import codec_quality

    sums = codec_quality.measure(
        codec_quality.Model(make_smollm2()),
        specs,
        count=options.passages,
        context=options.context,
        text=options.text,
        answer=options.answer,
    )
    figures: dict[str, object] = {}
    for name, one in sums.items():
        figures |= one.figures(name)
    exact = float(str(figures[f"{codec_quality.EXACT}_perplexity"]))
    ratios: dict[str, object] = {
        f"{spec}_perplexity_over_exact": float(str(figures[f"{spec}_perplexity"])) / exact for spec in specs
    }
    return figures, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=4, help="pages of text")
    parser.add_argument("--context", type=int, default=1_024, help="tokens before, a multiple of 256")
    parser.add_argument("--text", type=int, default=128, help="tokens that follow and are scored")
    parser.add_argument("--answer", type=int, default=64, help="greedy tokens")
    parser.add_argument("--mib", type=int, default=16, help="slot of the speed test")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("speed", "quality"))
    options = parser.parse_args()
    if options.context % 256 or options.context < 256:
        parser.error(f"--context is {options.context}: give a multiple of 256, the tokens of a chunk")
    specs = [parse_codec(text) for text in SPECS]
    figures: dict[str, object] = {}
    ratios: dict[str, object] = {}
    if options.only != "quality":
        figures, ratios = speeds(specs, options.mib << 20, options.rounds)
    if options.only != "speed":
        more_figures, more_ratios = quality(specs, options)
        figures, ratios = figures | more_figures, ratios | more_ratios
    limits: dict[str, object] = {"perplexity_exact": figures.get("exact_perplexity")}
    for name, wanted in WANTED.items():
        for way, value in zip(("encode", "decode"), wanted, strict=True):
            limits[f"{parse_codec(name)}_{way}_over_memcpy"] = value
    report("codec", figures, limits, ratios, digits=4)


if __name__ == "__main__":
    main()
