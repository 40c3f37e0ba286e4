"""The worker's side, free of any engine: runs the plans of the scheduler's side on the native transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from kvcommons_connector.metadata import LoadPlan, StepPlan, StorePlan
from kvcommons_connector.stats import Counters

DRAIN_MS: Final = 1_000
DRAIN_ROUNDS_MAX: Final = 60


class NodeTransfer(Protocol):
    """The part of `_native.Transfer` that is used. Tests put a fake here, at the wire."""

    def load(self, job: int, lease: int, first_block: int, block_ids: object, *, whole: bool = ...) -> str: ...
    def wait_layer(self, layer: int, ms_max: int) -> str: ...
    def wait_load(self, job: int, ms_max: int) -> str: ...
    def store(
        self,
        job: int,
        tenant: int,
        parent: bytes,
        keys: bytes,
        block_ids: object,
        text_keys: Sequence[Sequence[int]] = ...,
        hints: int = ...,
    ) -> str: ...
    def wait_stores(self, jobs: Sequence[int]) -> None: ...
    def take_finished_loads(self) -> list[tuple[int, str, int, int]]: ...
    def take_finished_stores(self) -> list[tuple[int, str, int, int]]: ...
    def stats(self) -> dict[str, int]: ...


class NodeSession(Protocol):
    """The part of `_native.Client` that a worker needs."""

    def ensure_connected(self) -> bool: ...
    @property
    def attach_count(self) -> int: ...


class WorkerCore:
    """One rank. The order of calls in a step: begin_step, start_loads, wait_layer for each layer, end_step, take_*."""

    def __init__(
        self,
        session: NodeSession,
        transfer: NodeTransfer,
        layer_index: Mapping[str, int],
        counters: Counters,
        *,
        load_ms_max: int,
        stores: bool,
    ) -> None:
        self._session, self._transfer, self._counters = session, transfer, counters
        self._layer_index = dict(layer_index)
        self._layers = len(set(self._layer_index.values()))
        self._load_ms_max = load_ms_max
        self._stores = stores  # False on ranks whose KV another rank stores
        self._beside: list[LoadPlan] = []
        self._between: dict[int, LoadPlan] = {}
        self._seen_layers: set[int] = set()
        self._late = False
        self._step_failed = False
        self._whole_first = False
        self._invalid_blocks: set[int] = set()
        self._finished: set[str] = set()
        self._failed: set[str] = set()
        self._stores_done: dict[int, int] = {}
        self._stats_before: dict[str, int] = {}
        self._attaches_before = 0

    def begin_step(self, plan: StepPlan) -> None:
        """Before anything of the step is written: end the stores that still read what it may overwrite."""
        self._step_failed = False
        if plan.fence_jobs:
            self._transfer.wait_stores(plan.fence_jobs)
        if plan.loads or plan.stores:
            self._session.ensure_connected()

    def start_loads(self, plan: StepPlan) -> None:
        """Submit the step's loads. A refusal touches nothing and is reported as a failed load."""
        for load in plan.loads:
            whole = load.asynchronous or self._whole_first  # no forward waits for its layers one by one
            status = self._transfer.load(load.job, load.lease, load.first_block, load.block_ids, whole=whole)
            if status != "ok":
                self._fail(load, status)
            elif load.asynchronous:
                self._between[load.job] = load
            else:
                self._beside.append(load)
        if self._beside and self._whole_first:
            for load in self._beside:
                self._drain(load)

    def wait_layer(self, name: str) -> None:
        """Before a layer's attention reads its KV."""
        if not self._beside:
            return
        layer = self._layer_index.get(name)
        if layer is None:
            return
        self._seen_layers.add(layer)
        if (
            not self._whole_first
            and not self._late
            and self._transfer.wait_layer(layer, self._load_ms_max) == "timed_out"
        ):
            self._late = True  # this layer was read before it was whole: the step's loads have failed

    def end_step(self, plan: StepPlan, *, computed: bool = True) -> None:
        """After the forward: find out which loads failed, then submit the stores, unless they rest on a failed load.

        :param computed: False if the forward ended in an error: its blocks may hold anything.
        """
        self._settle_loads()
        refused = "forward_failed" if not computed else "load_failed" if self._step_failed else ""
        for store in plan.stores:
            self._submit(store, refused)
        self._collect()

    def _settle_loads(self) -> None:
        if not self._beside:
            return
        unread = len(self._seen_layers) < self._layers and not self._whole_first
        outcomes = {load.job: self._drain(load) for load in self._beside}
        for load in self._beside:
            if unread or self._late:
                self._fail(load, "late" if self._late else "unhooked")
            elif outcomes[load.job] != "ok":
                self._fail(load, outcomes[load.job])
        if unread:  # this model does not call the layers' hooks: from now on a load ends before the forward begins
            self._whole_first = True
        self._beside, self._late = [], False
        self._seen_layers.clear()

    def _drain(self, load: LoadPlan) -> str:
        """Wait until the copy writes no more. It reads and writes mapped memory only, so it ends."""
        for _ in range(DRAIN_ROUNDS_MAX):
            status = self._transfer.wait_load(load.job, DRAIN_MS)
            if status != "timed_out":
                return status
        raise RuntimeError(
            f"the load {load.job} into {len(load.block_ids)} blocks has not ended in {DRAIN_ROUNDS_MAX} s"
        )

    def _submit(self, store: StorePlan, refused: str) -> None:
        status = refused if self._stores else "not_mine"
        if not status:
            status = self._transfer.store(
                store.job, store.tenant, store.parent, store.keys, store.block_ids, store.text_keys, store.hints
            )
        if status != "ok":
            self._stores_done[store.job] = 1
            if self._stores:
                self._counters.add("stores_dropped", 1, reason=status)

    def _fail(self, load: LoadPlan, status: str) -> None:
        self._counters.add("loads_refused", 1, reason=status)
        if load.asynchronous:
            self._finished.add(load.request_id)
            self._failed.add(load.request_id)
        else:
            self._step_failed = True
            self._invalid_blocks.update(load.block_ids)

    def _collect(self) -> None:
        for job, status, _bytes, _chunks in self._transfer.take_finished_loads():
            load = self._between.pop(job, None)
            if load is None:
                continue
            if status != "ok":
                self._fail(load, status)
            self._finished.add(load.request_id)
        for job, status, _bytes, _chunks in self._transfer.take_finished_stores():
            self._stores_done[job] = 1
            if status != "ok":
                self._counters.add("stores_dropped", 1, reason=status)

    def take_transfers(self) -> tuple[set[str], set[str]]:
        """Requests whose loads between steps have ended, and those of them that failed."""
        self._collect()
        finished, failed = self._finished, self._failed
        self._finished, self._failed = set(), set()
        return finished, failed

    def take_invalid_blocks(self) -> set[int]:
        """Blocks that this step read and that were not loaded. With speculative decoding vLLM asks before it ends the step."""
        self._settle_loads()
        blocks, self._invalid_blocks = self._invalid_blocks, set()
        return blocks

    def take_stores_done(self) -> dict[int, int]:
        """Stores that read no block any more, each once."""
        done, self._stores_done = self._stores_done, {}
        return done

    def count(self) -> None:
        """Bring the native counters into the connector's."""
        now = self._transfer.stats()
        before, self._stats_before = self._stats_before, now
        for name, source, scale in (
            ("load_bytes", "load_bytes", 1.0),
            ("load_seconds", "load_ns", 1e-9),
            ("store_bytes", "store_bytes", 1.0),
            ("store_seconds", "store_ns", 1e-9),
            ("store_chunks", "store_chunks", 1.0),
        ):
            self._counters.add(name, (now.get(source, 0) - before.get(source, 0)) * scale)
        attaches = self._session.attach_count
        self._counters.add("attaches", attaches - self._attaches_before)
        self._attaches_before = attaches
