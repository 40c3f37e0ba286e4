"""The vLLM scheduler's objects: requests as vLLM has them, the session with the node, a private node."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Final

from kvcommons_core import _native
from vllm.logger import init_logger

from kvcommons_connector.config import ConnectorConfig
from kvcommons_connector.late import LateLookups
from kvcommons_connector.metadata import RankReport, StepPlan, WorkerReport
from kvcommons_connector.private_node import PrivateNode
from kvcommons_connector.scheduler import SchedulerCore
from kvcommons_connector.stats import Counters
from kvcommons_connector.tracking import Geometry, ScheduledRequest
from kvcommons_connector.vllm_model import Unsupported, check_model
from kvcommons_connector.vllm_request import LoraIdentities, track

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger("vllm.kvcommons")
NO_SHARD: Final = -1


class SchedulerSide:
    """The scheduler's object graph. There is no core until the workers have said what they are."""

    def __init__(
        self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, config: ConnectorConfig, socket: str
    ) -> None:
        self._vllm_config, self._config, self._socket = vllm_config, config, socket
        self._counters = Counters()
        self._loras = LoraIdentities()
        self._requests: dict[str, Request] = {}
        self._reports: dict[int, RankReport] = {}
        self._suspects: set[int] = set()
        self._engine_cache: object = None
        self._cache_life = 0
        self._client: _native.Client | None = None
        self._private: PrivateNode | None = None
        self._block_tokens = 0
        self._reason = "starting"
        self.core: SchedulerCore | None = None
        try:
            self._block_tokens = check_model(vllm_config, kv_cache_config).block_size
        except Unsupported as error:
            self._reason = error.reason  # a worker says it to the user, and refuses if it is strict
            return
        if config.size:
            self._private = PrivateNode(socket, config.size)

    def hear(self, reports: list[RankReport]) -> None:
        """Open the session once every rank has reported the same identity."""
        self._reports.update((report.rank, report) for report in reports)
        world = self._vllm_config.parallel_config.world_size
        if self.core is not None or len(self._reports) < world:
            return
        first = self._reports[min(self._reports)]
        self._reason = next((report.reason for report in self._reports.values() if report.reason), "")
        if not self._reason and any(report.fingerprint != first.fingerprint for report in self._reports.values()):
            self._reason = "ranks_differ"
            logger.warning("kvcommons: this engine serves WITHOUT the commons: its ranks disagree about what they are")
        if self._reason or not self._block_tokens:
            return
        config = self._config
        self._client = _native.Client(
            socket_path=self._socket,
            role="scheduler",
            fingerprint=first.fingerprint,
            chunk_tokens=first.chunk_tokens,
            shards=first.shards,
            own_shard=NO_SHARD,
            call_ms_max=config.lookup_ms_max,
            exact=config.exact,
            readers_per_shard=max(1, world // len(first.shards)),  # ranks that hold the same share a lease
        )
        self._client.ensure_connected()
        geometry = Geometry(
            first.chunk_tokens,
            self._block_tokens,
            first.fingerprint,
            self._between_steps(),
            world,
            _data_parallel_rank(self._vllm_config),
            _model_name(self._vllm_config),
        )
        self.core = SchedulerCore(
            geometry,
            self._client,
            self._counters,
            _now_ms,
            load=config.load,
            store=config.store,
            lease_ms_max=config.lease_ms_max,
            fetch_ms_max=config.fetch_ms_max,
            on_late=LateLookups(lambda text: logger.warning("kvcommons: %s", text), _now_ms, config.lookup_ms_max),
        )

    def _between_steps(self) -> bool:
        """Beside a forward only where a failed load can be taken back exactly: one rank, one batch at a time, model runner V1."""
        config = self._vllm_config
        return bool(
            config.parallel_config.world_size > 1 or config.max_concurrent_batches > 1 or config.use_v2_model_runner
        )

    def arrive(self, request: Request, engine_cache: object) -> None:
        """See KVCommonsConnector.on_new_request. `engine_cache`: the table of vLLM's own prefix cache, which a reset replaces."""
        if engine_cache is not self._engine_cache:
            self._engine_cache, self._cache_life = engine_cache, self._cache_life + 1
        tracked = track(request, self._loras, self._reason, self._cache_life)
        self._requests[request.request_id] = request
        if self.core is not None:
            self.core.add(tracked, () if request.skip_reading_prefix_cache else request.all_token_ids)

    def matched(self, request: Request, computed_tokens: int) -> tuple[int | None, bool]:
        """See KVCommonsConnector.get_num_new_matched_tokens."""
        if self.core is None:
            return 0, False
        if request.skip_reading_prefix_cache:
            self.core.skip(request.request_id, "prompt_logprobs", computed_tokens)
            return 0, False
        return self.core.matched(request.request_id, request.all_token_ids, computed_tokens)

    def plan(self, output: SchedulerOutput) -> StepPlan:
        """See KVCommonsConnector.build_connector_meta."""
        if self.core is None:
            return StepPlan()
        counts, cached = output.num_scheduled_tokens, output.scheduled_cached_reqs
        scheduled = [
            ScheduledRequest(
                new.req_id,
                self._requests[new.req_id].all_token_ids,
                new.num_computed_tokens,
                counts[new.req_id],
                new.block_ids[0],
                True,
            )
            for new in output.scheduled_new_reqs
            if new.req_id in self._requests
        ]
        for i, request_id in enumerate(cached.req_ids):
            request = self._requests.get(request_id)
            blocks = cached.new_block_ids[i]
            if request is not None:
                scheduled.append(
                    ScheduledRequest(
                        request_id,
                        request.all_token_ids,
                        cached.num_computed_tokens[i],
                        counts[request_id],
                        blocks[0] if blocks else (),
                        request_id in cached.resumed_req_ids,
                    )
                )
        return self.core.step(scheduled, tuple(output.preempted_req_ids or ()))

    def heard_from_workers(
        self, report: WorkerReport | None, invalid_blocks: set[int], failed_requests: set[str]
    ) -> None:
        """See KVCommonsConnector.update_connector_output."""
        if report is not None and report.ranks:
            self.hear(report.ranks)
        if self.core is None:
            return
        if report is not None:
            self.core.stores_done(report.stores_done)
        if invalid_blocks:
            self._suspects |= self.core.loads_failed(invalid_blocks)
            self._rewind()
        for request_id in failed_requests:
            self.core.request_load_failed(request_id)

    def _rewind(self) -> None:
        """vLLM rewinds the first request that has a bad block; others that share it go on, and may read it before it is computed."""
        assert self.core is not None
        for request_id, sound_tokens in self.core.take_rewinds().items():
            request = self._requests.get(request_id)
            if request is not None:
                request.num_computed_tokens = min(request.num_computed_tokens, sound_tokens)

    def take_suspect_blocks(self) -> set[int]:
        """Blocks whose KV may rest on a failed load."""
        suspects, self._suspects = self._suspects, set()
        return suspects

    def finish(self, request: Request) -> None:
        """See KVCommonsConnector.request_finished_all_groups."""
        self._requests.pop(request.request_id, None)
        if self.core is not None:
            self.core.finish(request.request_id, request.num_computed_tokens)
        else:
            self._counters.request(self._reason, request.num_prompt_tokens, 0, 0, request.num_prompt_tokens)

    def reset(self) -> None:
        """See KVCommonsConnector.reset_cache."""
        if self.core is not None:
            self.core.reset(secrets.token_bytes(32))

    def take_counters(self) -> dict[str, float]:
        """For vLLM's statistics."""
        return self._counters.take()

    def close(self) -> None:
        """Leave the node; end a private one."""
        self.core = None
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._private is not None:
            self._private.stop()
            self._private = None


def _now_ms() -> float:
    return time.monotonic() * 1e3


def _model_name(config: VllmConfig) -> str:
    """What clients call the model: the first of its names."""
    names = config.model_config.served_model_name or ""
    return str(names if isinstance(names, str) else names[0])


def _data_parallel_rank(config: VllmConfig) -> int | None:
    """None without data parallelism. vLLM tells ranks of a dense model that they are alone; only their names keep the rank."""
    parallel, transfer = config.parallel_config, config.kv_transfer_config
    rank = int(parallel.data_parallel_index)
    named = transfer is not None and str(transfer.engine_id).endswith(f"_dp{rank}")
    return rank if named or parallel.data_parallel_size > 1 else None
