"""Data-parallel ranks of a real engine: each has a cache of its own, and the commons joins them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from engine.conftest import models
from engine.engine_client import connector

from bench.models import tiny_llama

__all__ = ["models"]  # a fixture of the engine suite

RUN_SECONDS_MAX = 280
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
PROGRAM = """
import asyncio, json, sys
from kvcommons_core import _native
from vllm import SamplingParams
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

async def main(model, socket, transfer, said):
    node = _native.NodeCore(
        socket_path=socket, arena_bytes=128 << 20, slab_bytes=8 << 20, node_id="dp", namespace_secret=bytes(32), populate=False
    )
    node.start()
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(
        model=model, enforce_eager=True, max_model_len=8192, dtype="float32", skip_tokenizer_init=True, data_parallel_size=2,
        kv_transfer_config=KVTransferConfig(**transfer),
    ))

    async def ask(rank, name, ids):
        sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
        async for output in engine.generate({"prompt_token_ids": ids}, sampling, name, data_parallel_rank=rank):
            last = output
        return last.num_cached_tokens, list(last.outputs[0].token_ids)

    text = [10 + i * 7 % 4000 for i in range(1100)]
    answers = [await ask(0, "cold", text)]
    await ask(0, "another step, so that the store has ended", [3, 4, 5])
    answers += [await ask(1, "commons", text), await ask(1, "own", text)]
    reports = [json.loads(event[4]) for event in node.drain_events(1000)[0] if event[0] == "feedback"]
    with open(said, "w") as file:
        json.dump({"answers": answers, "reports": reports}, file)
    engine.shutdown()
    node.stop()

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]))
"""


@pytest.mark.timeout(300)
def test_what_one_rank_has_computed_the_other_loads(models: Path) -> None:
    """The second rank never saw the text: its tokens come from the commons and are the same; the reports say which rank."""
    with tempfile.TemporaryDirectory(prefix="kvd") as name:
        folder = Path(name)
        (folder / "ranks.py").write_text(PROGRAM)
        transfer = json.dumps(connector(socket=str(folder / "n.sock")))
        words = [str(tiny_llama(models / "tiny-llama")), str(folder / "n.sock"), transfer, str(folder / "said")]
        with (folder / "log").open("wb") as log:
            status = subprocess.run(
                [sys.executable, "-P", str(folder / "ranks.py"), *words],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT,
                timeout=RUN_SECONDS_MAX,
            ).returncode
        assert status == 0, (folder / "log").read_text(errors="replace")[-6000:]
        said: dict[str, Any] = json.loads((folder / "said").read_text())
    assert [cached for cached, _tokens in said["answers"]] == [0, 1024, 1024]
    assert len({tuple(tokens) for _cached, tokens in said["answers"]}) == 1
    reused = [(report["dp_rank"], report["own_tokens"], report["commons_tokens"]) for report in said["reports"]]
    assert reused == [(0, 0, 0), (0, 0, 0), (1, 0, 1024), (1, 1024, 0)]
