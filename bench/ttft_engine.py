"""One engine of bench.ttft, in whatever environment has its connector: `python -P ttft_engine.py SOCKET JSON`.

Imports nothing of this project, so that an environment without it can run it. Answers on SOCKET: a list of token ids with
(milliseconds, tokens, cached tokens), and None, which empties the engine's own prefix cache, with whether that was done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing.connection import Client, Connection
from typing import Any


def main() -> int:
    """Until the other side hangs up."""
    settings = json.loads(sys.argv[2])
    with Client(sys.argv[1], family="AF_UNIX") as connection:
        llm, parameters = _engine(settings)
        connection.send("ready")
        _serve(connection, llm, parameters)
    return 0


def _engine(settings: dict[str, Any]) -> tuple[Any, Any]:
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND=str(settings["core"]),
    )
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    transfer = settings["transfer"]
    llm = LLM(
        model=settings["model"],
        enforce_eager=True,
        max_model_len=8192,
        dtype="float32",
        seed=0,
        max_num_batched_tokens=8192,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        num_gpu_blocks_override=settings["blocks"],
        kv_transfer_config=KVTransferConfig(**transfer),
        disable_hybrid_kv_cache_manager=transfer["kv_connector"] == "ExampleConnector",  # it knows nothing of it
    )
    return llm, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)


def _serve(connection: Connection, llm: Any, parameters: Any) -> None:
    while True:
        try:
            ids = connection.recv()
        except EOFError:
            return
        if ids is None:
            connection.send(bool(llm.reset_prefix_cache()))
            continue
        begin = time.perf_counter()
        output = llm.generate([{"prompt_token_ids": ids}], parameters, use_tqdm=False)[0]
        took_ms = (time.perf_counter() - begin) * 1e3
        connection.send((took_ms, list(output.outputs[0].token_ids), output.num_cached_tokens))


if __name__ == "__main__":
    sys.exit(main())
