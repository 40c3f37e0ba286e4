"""A vLLM worker's objects: what the rank is, its session with the node, its transfer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from kvcommons_core import _native
from kvcommons_core.errors import KvCommonsError
from vllm.logger import init_logger

from kvcommons_connector import devices
from kvcommons_connector.config import ConnectorConfig
from kvcommons_connector.layout import LayoutError
from kvcommons_connector.metadata import RankReport, WorkerReport
from kvcommons_connector.stats import Counters
from kvcommons_connector.vllm_model import RankView, Unsupported, check_model, describe_rank
from kvcommons_connector.worker import WorkerCore

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger("vllm.kvcommons")


class WorkerSide:
    """One rank's object graph: the session, the transfer, the core; none of them where the model can't be cached."""

    def __init__(
        self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, config: ConnectorConfig, socket: str
    ) -> None:
        self._vllm_config, self._kv_cache_config, self._config, self._socket = (
            vllm_config,
            kv_cache_config,
            config,
            socket,
        )
        self._counters = Counters()
        self._client: _native.Client | None = None
        self._transfer: _native.Transfer | None = None
        self._told = False
        self._said = ""
        self.core: WorkerCore | None = None
        self.report: RankReport | None = None

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Open this rank's session, or say once why not."""
        parallel = self._vllm_config.parallel_config
        tp_rank = parallel.rank % parallel.tensor_parallel_size
        pp_rank = parallel.rank // parallel.tensor_parallel_size % parallel.pipeline_parallel_size
        try:
            check_model(self._vllm_config, self._kv_cache_config)
            device = _device(kv_caches, self._config)
            view = describe_rank(
                self._vllm_config,
                self._kv_cache_config,
                kv_caches,
                chunk_tokens=self._config.chunk_tokens,
                tp_rank=tp_rank,
                pp_rank=pp_rank,
                platform=_platform(self._vllm_config, kv_caches),
            )
        except (KvCommonsError, LayoutError) as error:
            if self._config.strict:
                raise
            self._serve_without(error, error.reason if isinstance(error, Unsupported) else "identity")
            return
        try:
            self._open(view, device)
        except (RuntimeError, ValueError) as error:  # a GPU without memory left, or layers that are not in its memory
            if self._config.strict or not device.startswith("cuda"):
                raise
            self.close()
            self._serve_without(error, "device")
            return
        self.report = RankReport(parallel.rank, view.identity.fingerprint(), self._config.chunk_tokens, view.shards, "")

    def _serve_without(self, error: Exception, reason: str) -> None:
        logger.warning("kvcommons: this engine serves WITHOUT the commons: %s", error)
        rank = self._vllm_config.parallel_config.rank
        self.report = RankReport(rank, b"", 0, (), reason)

    def _open(self, view: RankView, device: str) -> None:
        config = self._config
        self._client = _native.Client(
            socket_path=self._socket,
            role="worker",
            fingerprint=view.identity.fingerprint(),
            chunk_tokens=config.chunk_tokens,
            shards=view.shards,
            own_shard=view.own_shard,
            call_ms_max=config.call_ms_max,
            layout=view.form,
            exact=config.exact,
        )
        on_gpu = device.startswith("cuda")
        with _every_core():
            self._transfer = (devices.GpuTransfer if on_gpu else _native.Transfer)(
                self._client,
                blocks_per_chunk=config.chunk_tokens // view.identity.groups[0].block_tokens,
                layers=view.layers,
                copy_threads=config.copy_threads,
                device=device,
                kernels=devices.kernels() if on_gpu else b"",
                driver=devices.driver(),
            )
        if isinstance(self._transfer, devices.GpuTransfer) and torch.cuda.is_available():
            self._transfer.engine_stream = lambda: int(torch.cuda.current_stream().cuda_stream)
        self.core = WorkerCore(
            self._client,
            self._transfer,
            view.layer_index,
            self._counters,
            load_ms_max=config.load_ms_max,
            stores=view.stores,
        )
        attached = self._client.ensure_connected()
        logger.info(
            "kvcommons: rank %d, fingerprint %s, node at %s %s",
            self._vllm_config.parallel_config.rank,
            view.identity.fingerprint().hex()[:16],
            self._socket,
            "attached" if attached else f"not there yet ({self._client.last_error}); attaching by itself when it is",
        )

    def take_report(self) -> WorkerReport | None:
        """Since the last step; with the rank's own report the first time, for engines that pass no handshake on."""
        done = self.core.take_stores_done() if self.core is not None else {}
        ranks = [] if self._told or self.report is None else [self.report]
        self._told = True
        return WorkerReport(done, ranks) if done or ranks else None

    def take_counters(self) -> dict[str, float]:
        """For vLLM's statistics."""
        if self.core is not None and self._client is not None:
            self.core.count()
            self._say_why()
        return self._counters.take()

    def _say_why(self) -> None:
        """One line for each new reason why the node is not there, and none while it is."""
        assert self._client is not None
        error = "" if self._client.connected else self._client.last_error
        if error != self._said:
            self._said = error
            logger.warning("kvcommons: node at %s: %s", self._socket, error or "attached")

    def close(self) -> None:
        """Let running stores end, then leave."""
        if self._transfer is not None:
            self._transfer.wait_all_stores()
        self.core, self._transfer = None, None
        if self._client is not None:
            self._client.close()
            self._client = None


@contextlib.contextmanager
def _every_core() -> Iterator[None]:
    """Threads started here may run on any core that the process may use: vLLM binds this thread to those it computes on."""
    bound = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the kernel leaves out what the container may not use
    except OSError:  # not allowed here: then the copies share the cores of the forward
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def _device(kv_caches: dict[str, torch.Tensor], config: ConnectorConfig) -> str:
    """What copies this rank's KV."""
    placed = [tensor.device for tensor in kv_caches.values()]
    ordinal = next((device.index for device in placed if device.index is not None), 0)
    try:
        return devices.copy_device({device.type for device in placed}, ordinal, config.device)
    except devices.DeviceMissing as error:
        raise Unsupported("device", str(error)) from error


def _platform(config: VllmConfig, kv_caches: dict[str, torch.Tensor]) -> str:
    """What decides the order of bytes in a block on this machine, besides the tensors' strides."""
    backends = set()
    for name in kv_caches:
        layer = config.compilation_config.static_forward_context.get(name)
        backend = getattr(layer, "attn_backend", None)
        if layer is None or backend is None:
            raise Unsupported("attention", f"the attention backend of {name} is not known")
        backends.add(f"{backend.get_name()}:{getattr(layer, 'isa', 'none')}")
    gpus = [tensor.device for tensor in kv_caches.values() if tensor.device.type == "cuda"]
    if gpus:
        major, minor = torch.cuda.get_device_capability(gpus[0])
        return f"cuda:{major}.{minor}:{'+'.join(sorted(backends))}"
    return f"cpu:{torch.backends.cpu.get_cpu_capability()}:{'+'.join(sorted(backends))}"
