"""KVCommonsConnector for vLLM 0.32: `kv_connector_module_path` "kvcommons_connector.vllm". Of this package only vllm*.py import
vLLM and torch.

vLLM makes one object in the scheduler's process and one in each worker's. Neither may fail the engine because of the cache: what
can't be cached, or a node that is away, is counted with its reason and computed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kvcommons_core.errors import ConfigurationError
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvcommons_connector.config import parse_config
from kvcommons_connector.metadata import RankReport, StepPlan, WorkerReport
from kvcommons_connector.private_node import private_socket
from kvcommons_connector.vllm_scheduler import SchedulerSide
from kvcommons_connector.vllm_stats import KVCommonsPromMetrics, KVCommonsStats
from kvcommons_connector.vllm_worker import WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request


class KVCommonsMetadata(KVConnectorMetadata):
    """Scheduler to workers, each step."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan


class KVCommonsHandshake(KVConnectorHandshakeMetadata):
    """Worker to scheduler, once at start."""

    def __init__(self, report: RankReport) -> None:
        self.report = report


class KVCommonsWorkerMetadata(KVConnectorWorkerMetadata):
    """Workers to scheduler, each step in which there is something to say."""

    def __init__(self, report: WorkerReport) -> None:
        self.report = report

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """Merge another rank's."""
        assert isinstance(other, KVCommonsWorkerMetadata)
        self.report.merge(other.report)
        return self


class KVCommonsConnector(KVConnectorBase_V1, SupportsHMA):
    """What vLLM constructs. Each side's work is in SchedulerSide or WorkerSide."""

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        transfer = self._kv_transfer_config
        config = parse_config(transfer.kv_connector_extra_config or {})
        if transfer.kv_load_failure_policy != "recompute":
            raise ConfigurationError(
                "kv_load_failure_policy",
                transfer.kv_load_failure_policy,
                'set "kv_load_failure_policy": "recompute" in --kv-transfer-config (under MultiConnector, there and in this connector\'s '
                "own entry): a cache that is away must cost time, not the request",
            )
        engine_id = str(transfer.engine_id)
        socket = private_socket(engine_id) if config.size else config.socket_path(os.environ)
        self._error_before: BaseException | None = None
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerSide(vllm_config, kv_cache_config, config, socket)
        else:
            self._worker = WorkerSide(vllm_config, kv_cache_config, config, socket)

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache is best effort: what could not be stored is computed again."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Layers' hooks are used, and a whole graph would skip them."""
        return True

    def shutdown(self) -> None:
        """End the copies, the sessions and a private node."""
        for side in (self._worker, self._scheduler):
            if side is not None:
                side.close()

    def get_kv_connector_stats(self) -> KVCommonsStats | None:
        """This process's counters since the last call."""
        side = self._worker or self._scheduler
        taken = side.take_counters() if side is not None else {}
        return KVCommonsStats(data=taken) if taken else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVCommonsStats:
        """From what another process took."""
        return KVCommonsStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVCommonsPromMetrics:
        """The counters on vLLM's /metrics."""
        return KVCommonsPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # worker ---------------------------------------------------------------------------------------------------------

    @property
    def _at_worker(self) -> WorkerSide:
        assert self._worker is not None
        return self._worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Learn layout and addresses."""
        self._at_worker.register(kv_caches)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """What this rank is, for the scheduler's side."""
        return KVCommonsHandshake(self._at_worker.report) if self._at_worker.report is not None else None

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Before the step writes anything."""
        assert isinstance(kv_connector_metadata, KVCommonsMetadata)
        self._error_before = sys.exc_info()[1]
        if self._at_worker.core is not None:
            self._at_worker.core.begin_step(kv_connector_metadata.plan)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Before the forward if it needs these loads, else after it."""
        if self._at_worker.core is not None:
            self._at_worker.core.start_loads(self._plan())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Before a layer's attention."""
        if self._at_worker.core is not None:
            self._at_worker.core.wait_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Chunks are stored whole, after the step."""

    def wait_for_save(self) -> None:
        """After the forward, and after one that failed: vLLM calls this while that error is on its way up."""
        if self._at_worker.core is not None:
            self._at_worker.core.end_step(self._plan(), computed=sys.exc_info()[1] is self._error_before)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Loads between steps that have ended."""
        if self._at_worker.core is None:
            return KVConnectorTransferResults()
        finished, failed = self._at_worker.core.take_transfers()
        return KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that this step's forward read and that hold no sound KV."""
        return self._at_worker.core.take_invalid_blocks() if self._at_worker.core is not None else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """What to tell the scheduler's side."""
        report = self._at_worker.take_report()
        return KVCommonsWorkerMetadata(report) if report is not None else None

    def _plan(self) -> StepPlan:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, KVCommonsMetadata)
        return metadata.plan

    # scheduler ------------------------------------------------------------------------------------------------------

    @property
    def _at_scheduler(self) -> SchedulerSide:
        assert self._scheduler is not None
        return self._scheduler

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """The workers' reports; under MultiConnector other connectors' too."""
        self.set_xfer_handshake_metadata_pp_aware({(0, rank): item for rank, item in metadata.items()})

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """The same with pipeline stages."""
        self._at_scheduler.hear([item.report for item in metadata.values() if isinstance(item, KVCommonsHandshake)])

    def on_new_request(self, request: Request) -> None:
        """A request has arrived."""
        pool = getattr(self._kv_cache_manager, "block_pool", None)
        self._at_scheduler.arrive(request, getattr(pool, "cached_block_hash_to_block", None))

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How much more than the engine's own cache the commons has."""
        return self._at_scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        """The request has its blocks."""
        core = self._at_scheduler.core
        if core is not None:
            groups = blocks.get_block_ids()
            core.allocated(request.request_id, groups[0] if groups else [], num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """The step's plan."""
        return KVCommonsMetadata(self._at_scheduler.plan(scheduler_output))

    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers did."""
        side = self._at_scheduler
        metadata = connector_output.kv_connector_worker_meta
        side.heard_from_workers(
            metadata.report if isinstance(metadata, KVCommonsWorkerMetadata) else None,
            set(connector_output.invalid_block_ids or ()),
            set(connector_output.failed_recving or ()),
        )
        suspects = side.take_suspect_blocks()
        if suspects and self._kv_cache_manager is not None:
            # vLLM recomputes these, but would still find them by their hashes if the request ended before.
            self._kv_cache_manager.evict_blocks(suspects)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """The request has ended, in an engine without hybrid KV management."""
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The request has ended; its blocks may go at once, the fence of a later step keeps them whole for running stores."""
        self._at_scheduler.finish(request)
        return False, None

    def take_events(self) -> Iterable[Any]:
        """No KV events of its own: the node publishes."""
        return ()

    def reset_cache(self) -> bool | None:
        """The engine's caches are void (its weights may be others): begin a new generation of keys."""
        self._at_scheduler.reset()
        return True


# MultiConnector looks up its children's statistics by name in the registry alone, even of those that were given by a module path.
if "KVCommonsConnector" not in KVConnectorFactory._registry:
    KVConnectorFactory.register_connector("KVCommonsConnector", __name__, "KVCommonsConnector")
