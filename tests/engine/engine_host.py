"""Runs real vLLM engines for tests: one process that has imported vLLM and forks a child for each engine (an import costs 10 s).

Run as a program with the number of a Unix socket. See engine_client.py for the side of the tests.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
STEPS_MAX = 500


class Host:
    """One engine and the commands on it. Each public method is a command."""

    def __init__(self, engine: dict[str, Any], connector: dict[str, Any] | None) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig

        arguments: dict[str, Any] = {
            "enforce_eager": True,
            "max_model_len": 8192,
            "dtype": "float32",
            "seed": 0,
            "max_num_batched_tokens": 8192,
            "skip_tokenizer_init": True,
            "disable_log_stats": False,
        } | engine
        if connector is not None:
            arguments["kv_transfer_config"] = KVTransferConfig(**connector)
        self.llm = LLM(**arguments)
        self.blocks: dict[str, list[int]] = {}
        self._watch_blocks()

    def _core(self) -> Any:
        return getattr(self.llm.llm_engine.engine_core, "engine_core", None)

    def _watch_blocks(self) -> None:
        """Remember the block table of each request as it ends, so that a test can read its KV."""
        core = self._core()
        connector = core.scheduler.connector if core is not None else None
        if connector is None:
            return
        inner = connector.request_finished_all_groups

        def finished(request: Any, block_ids: tuple[list[int], ...]) -> Any:
            self.blocks[request.request_id] = list(block_ids[0]) if block_ids else []
            return inner(request, block_ids)

        connector.request_finished_all_groups = finished

    def generate(
        self, prompts: list[dict[str, Any]], max_tokens: int = 1, logprobs: int | None = None, **sampling: Any
    ) -> list[dict[str, Any]]:
        """Greedy tokens, their logprobs and the number of cached tokens of each prompt, all submitted at once."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        loras = [LoRARequest(*prompt["lora"]) if "lora" in prompt else None for prompt in prompts]
        extra = [prompt.get("kv_transfer_params") for prompt in prompts]
        parameters = [
            SamplingParams(
                temperature=0,
                max_tokens=max_tokens,
                ignore_eos=True,
                detokenize=False,
                logprobs=logprobs,
                extra_args={"kv_transfer_params": params} if params else None,
                **sampling,
            )
            for params in extra
        ]
        inputs = [self._input(prompt) for prompt in prompts]
        outputs = self.llm.generate(inputs, parameters, use_tqdm=False, lora_request=loras if any(loras) else None)
        return [
            {
                "id": output.request_id,
                "tokens": list(output.outputs[0].token_ids),
                "cached": output.num_cached_tokens,
                "logprobs": [
                    {token: item.logprob for token, item in position.items()}
                    for position in output.outputs[0].logprobs or []
                ],
                "prompt_logprobs": [
                    {token: item.logprob for token, item in (position or {}).items()}
                    for position in output.prompt_logprobs or []
                ],
            }
            for output in outputs
        ]

    def _input(self, prompt: dict[str, Any]) -> Any:
        if "embeds" in prompt:
            import torch

            generator = torch.Generator().manual_seed(prompt["embeds"])
            return {"prompt_embeds": torch.randn(prompt["length"], prompt["width"], generator=generator)}
        fields: dict[str, Any] = {"prompt_token_ids": list(prompt["ids"])}
        if "salt" in prompt:
            fields["cache_salt"] = prompt["salt"]
        if "sound" in prompt:
            import numpy

            random = numpy.random.default_rng(prompt["sound"])
            fields["multi_modal_data"] = {"audio": (random.standard_normal(16_000).astype(numpy.float32), 16_000)}
            if "sound_id" in prompt:
                fields["multi_modal_uuids"] = {"audio": [prompt["sound_id"]]}
        return fields

    def reset(self, connector: bool = False) -> bool:
        """Forget the engine's own prefix cache; with the connector, begin a new generation."""
        return bool(self.llm.reset_prefix_cache(reset_connector=connector))

    def settle(self) -> None:
        """Run steps until the scheduler's side knows that every store has ended."""
        core = self._core()
        connector = core.scheduler.connector if core is not None else None
        scheduler = connector._scheduler.core if connector is not None else None
        for _ in range(STEPS_MAX):
            self.generate([{"ids": [3, 4, 5]}], max_tokens=2)
            if scheduler is None or not scheduler._stores:
                return
        raise AssertionError("stores do not end")

    def kv(self, request_id: str, first_block: int, last_block: int) -> list[str]:
        """SHA-256 of each layer's bytes in a finished request's blocks, as they are now."""
        blocks = self.blocks[next(name for name in self.blocks if name.split("-")[0] == request_id)][
            first_block:last_block
        ]
        runner = self._core().model_executor.driver_worker.worker.model_runner
        return [hashlib.sha256(layer[blocks].contiguous().numpy().tobytes()).hexdigest() for layer in runner.kv_caches]

    def describe(self) -> dict[str, Any]:
        """What the connector made of this model."""
        side = self._core().scheduler.connector._scheduler
        report = next(iter(side._reports.values()), None)
        return {
            "reason": side._reason,
            "fingerprint": report.fingerprint if report else b"",
            "shards": report.shards if report else (),
            "block": self.llm.llm_engine.vllm_config.cache_config.block_size,
            "beside": side.core is not None and not side.core._geometry.asynchronous,
            "private_pid": side._private.pid if side._private else 0,
        }

    def metrics(self, prefix: str = "kvcommons_connector_") -> dict[str, float]:
        """The counters as they stand on /metrics, by default the connector's: name|reason or status -> value."""
        self.settle()
        from prometheus_client import REGISTRY

        found: dict[str, float] = {}
        for family in REGISTRY.collect():
            if not family.name.startswith(prefix):
                continue
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    labels = [text for name, text in sample.labels.items() if name in ("reason", "status")]
                    key = family.name.removeprefix(prefix) + (f"|{labels[0]}" if labels else "")
                    found[key] = found.get(key, 0) + sample.value
        return found

    def arm(self, where: str, pid: int = 0) -> None:
        """Once, at the next load or store: kill -9 the node `pid` before or right after it is submitted ("before_load", ...), or hold
        what was begun for ever ("hold_load", "hold_store")."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        core = get_kv_transfer_group()._worker.core
        core._transfer = FaultyTransfer(core._transfer, core._session, where, pid)

    def worker_pids(self) -> list[int]:
        """vLLM's worker processes below this one."""
        return [pid for pid in _children(os.getpid()) if "Worker" in Path(f"/proc/{pid}/comm").read_text()]


class FaultyTransfer:
    """The native transfer, with one fault at a named point."""

    def __init__(self, inner: Any, client: Any, where: str, pid: int) -> None:
        self._inner, self._client, self._where, self._pid = inner, client, where, pid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def load(self, job: int, lease: int, first_block: int, block_ids: Any, whole: bool = False) -> str:
        """Submit a load."""
        if self._where == "hold_load":
            self._hold(self._client.begin(lease)[0])
        self._reach("before_load")
        status: str = self._inner.load(job, lease, first_block, block_ids, whole=whole)
        self._reach("after_load")
        return status

    def store(self, job: int, tenant: int, parent: bytes, keys: bytes, *rest: Any) -> str:
        """Submit a store."""
        if self._where == "hold_store":
            self._hold(self._client.reserve(tenant, parent, keys)[0])
        self._reach("before_store")
        status: str = self._inner.store(job, tenant, parent, keys, *rest)
        self._reach("after_store")
        return status

    def _hold(self, status: str) -> None:
        assert status == "ok", status
        while True:
            signal.pause()

    def _reach(self, point: str) -> None:
        if point != self._where:
            return
        self._where = ""
        pidfd = os.pidfd_open(self._pid)
        os.kill(self._pid, signal.SIGKILL)
        select.select([pidfd], [], [], 30)
        os.close(pidfd)


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        direct = [int(text) for text in file.read().split()]
    return direct + [grandchild for child in direct for grandchild in _children(child)]


def serve(connection: Connection, request: dict[str, Any]) -> None:
    """Be one engine: build it, then obey until the other side hangs up."""
    try:
        host = Host(request["engine"], request["connector"])
        connection.send(("ok", os.getpid()))
    except BaseException:
        connection.send(("error", traceback.format_exc()))
        raise
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        command: Callable[..., Any] = getattr(host, name)
        try:
            connection.send(("ok", command(**arguments)))
        except Exception:  # noqa: BLE001 - whatever it is, the test must see it
            connection.send(("error", traceback.format_exc()))


def fork_engine(control: socket.socket, request: dict[str, Any], fd: int, log: int) -> int:
    """Fork a child that serves an engine on `fd` and writes what it says to `log`."""
    pid = os.fork()
    if pid:
        os.close(fd)
        os.close(log)
        return pid
    control.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    status = 1
    try:
        serve(Connection(fd), request)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Import vLLM once, then fork on demand until the tests hang up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.environ.update(ENVIRONMENT)
    import torch
    import vllm
    import vllm.entrypoints.llm

    torch.set_num_threads(1)
    assert vllm.__version__
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    import json

    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 16, 2)
        if not message:
            return
        pid = fork_engine(control, json.loads(message), fds[0], fds[1])
        control.sendall(pid.to_bytes(8, "little"))


if __name__ == "__main__":
    main()
