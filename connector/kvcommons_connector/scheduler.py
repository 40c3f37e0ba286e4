"""The scheduler's side, free of any engine: which chunks of a request are in the cache, what to load, what to store.

Life of a request: add -> matched (asked again and again until it is scheduled) -> allocated -> step ... -> finish.
A preempted request goes through matched and allocated again. Every public method is cheap and never raises because of the node:
a node that is away is a miss with a reason.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from kvcommons_connector import misses
from kvcommons_connector.fences import FrozenBlocks
from kvcommons_connector.metadata import LoadPlan, StepPlan, StorePlan
from kvcommons_connector.questions import KEY, NO_PARENT, Questions
from kvcommons_connector.stats import Counters
from kvcommons_connector.timings import Timings
from kvcommons_connector.tracking import Geometry, NodeClient, ScheduledRequest, Tracked

STORE_CHUNKS_MAX: Final = 16_384  # of one store: what the native side takes at once


class SchedulerCore:
    """See the module. `client` is None as long as no worker has reported what it can do."""

    def __init__(
        self,
        geometry: Geometry,
        client: NodeClient,
        counters: Counters,
        now_ms: Callable[[], float],
        *,
        load: bool,
        store: bool,
        lease_ms_max: int,
        fetch_ms_max: int,
        on_late: Callable[[], None] | None = None,
    ) -> None:
        self._geometry, self._client, self._counters = geometry, client, counters
        self._now_ms = now_ms
        self._load, self._store = load, store
        self._questions = Questions(
            geometry, client, counters, now_ms, lease_ms_max=lease_ms_max, fetch_ms_max=fetch_ms_max, on_late=on_late
        )
        self._requests: dict[str, Tracked] = {}
        self._next_job = 1
        self._loads: list[LoadPlan] = []
        self._touched_blocks: set[int] = set()
        self._given_back: list[Tracked] = []
        self._stores: dict[int, tuple[Tracked, int]] = {}  # job -> (request, ranks still reading)
        self._step_stores: list[tuple[Tracked, int]] = []
        self._frozen = FrozenBlocks()
        self._rewinds: dict[str, int] = {}
        self._loading: list[Timings] = []  # beside the step that was planned last

    # requests -------------------------------------------------------------------------------------------------------

    def add(self, request: Tracked, tokens: Sequence[int] = ()) -> None:
        """A request has arrived. The engine asks as soon as it has room; a node with a disk is told its tokens at once."""
        self._requests[request.request_id] = request
        if request.hints.traced:
            request.timings = Timings(self._now_ms)
        if self._load:
            self._questions.announce(request, tokens, len(tokens) // self._geometry.chunk_tokens)

    def request(self, request_id: str) -> Tracked | None:
        """The request, as long as it lives."""
        return self._requests.get(request_id)

    def matched(self, request_id: str, tokens: Sequence[int], computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens beyond `computed_tokens` that can be loaded, and whether between steps; None: ask again, they are on their way."""
        request = self._requests.get(request_id)
        if request is None:
            return 0, False
        request.local_tokens, request.allocations = computed_tokens, 0
        geometry = self._geometry
        limit = (len(tokens) - 1) // geometry.block_tokens * geometry.block_tokens
        chunks = len(tokens) // geometry.chunk_tokens
        if not self._load or request.load_failed or min(limit, chunks * geometry.chunk_tokens) <= computed_tokens:
            self._questions.drop(request)
            return 0, False
        if not self._questions.ready(request):
            request.miss = "node_away"
            self._questions.drop(request)
            return 0, False
        timings = request.timings
        if timings is not None:
            timings.begin("lookup")
        answer = self._questions.ask(request, tokens, chunks)
        if timings is not None:
            timings.looked_up(pending=bool(answer.pending_chunks))
        if answer.pending_chunks and self._questions.worth_waiting(request):
            return None, False
        usable = min(answer.hit_chunks * geometry.chunk_tokens, limit)
        if usable <= computed_tokens:
            self._questions.release(answer)
            return 0, False
        return usable - computed_tokens, geometry.asynchronous

    def skip(self, request_id: str, reason: str, computed_tokens: int) -> None:
        """This request computes all of its prompt, whatever is cached (it wants logprobs of the prompt)."""
        request = self._requests.get(request_id)
        if request is not None:
            request.local_tokens, request.allocations, request.miss = computed_tokens, 0, reason

    def allocated(self, request_id: str, block_ids: Sequence[int], external_tokens: int) -> None:
        """The engine has given the request its blocks, and wants `external_tokens` of what was offered (0: none)."""
        request = self._requests.get(request_id)
        if request is None:  # it came before this side knew its node: not stored, but written all the same
            self._touched_blocks.update(block_ids)
            return
        self._touched_blocks.update(block_ids[request.local_tokens // self._geometry.block_tokens :])
        request.allocations += 1
        request.expected_tokens = request.local_tokens + max(0, external_tokens)
        if external_tokens <= 0:
            if request.own_tokens is None:
                request.own_tokens = request.local_tokens
            self._questions.drop(request)
            return
        request.block_ids = list(block_ids)
        answer, geometry = request.answer, self._geometry
        first = request.local_tokens // geometry.block_tokens
        count = external_tokens // geometry.block_tokens
        plan = LoadPlan(
            request_id,
            self._job(),
            answer.lease if answer else 0,
            first,
            array("I", block_ids[first : first + count]),
            geometry.asynchronous,
        )
        self._loads.append(plan)
        if answer is not None:
            request.stored_chunks = max(request.stored_chunks, answer.hit_chunks)
        request.answer = None  # the lease is the workers' now
        if request.timings is not None:
            request.timings.begin("load")
        if request.own_tokens is None:
            request.own_tokens, request.commons_tokens = request.local_tokens, external_tokens
        self._counters.add("load_tokens", external_tokens)

    def finish(self, request_id: str, computed_tokens: int) -> None:
        """The request has ended: its blocks go back to the engine, the router hears what was reused."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self._questions.drop(request)
        self._given_back.append(request)
        own = min(request.own_tokens or 0, request.prompt_tokens)
        commons = min(request.commons_tokens, request.prompt_tokens - own)
        computed = max(0, min(request.prompt_tokens, computed_tokens) - own - commons)
        reason = "" if own + commons >= self._reusable_tokens(request) else request.reason or request.miss
        self._counters.request(reason, request.prompt_tokens, own, commons, computed)
        if self._client.ensure_connected():
            report: dict[str, object] = {
                "request_id": request.hints.request_id or request_id,
                "prompt_tokens": request.prompt_tokens,
                "own_tokens": own,
                "commons_tokens": commons,
                "computed_tokens": computed,
                "reason": reason,
            }
            if reason in misses.ABSENT:
                report |= misses.missed(request, self._geometry, own + commons)
            if request.hints.other_tenant:
                report["other_tenant"] = 1
            if request.timings is not None:
                report["parts"] = request.timings.told()
            if self._geometry.dp_rank is not None:
                report["dp_rank"] = self._geometry.dp_rank
            if self._geometry.model:
                report["model"] = self._geometry.model
            self._client.feedback(json.dumps(report, separators=(",", ":")))

    def reset(self, nonce: bytes) -> None:
        """The weights, or what else the keys can't see, have changed: nothing stored before is found again by this engine, and
        what is running now, computed in part before, is not stored."""
        self._questions.generation = nonce
        for request in self._requests.values():
            self._questions.drop(request)
            request.reason = request.reason or "reset"

    # steps ----------------------------------------------------------------------------------------------------------

    def step(self, scheduled: Sequence[ScheduledRequest], preempted: Sequence[str]) -> StepPlan:
        """The work that goes with the step that was just scheduled."""
        for request_id in preempted:
            request = self._requests.get(request_id)
            if request is not None:
                self._give_back(request)
        for request in self._given_back:
            self._give_back(request)
        self._given_back = []
        for timings in self._loading:
            timings.end("load")
        self._loading = []
        plan = StepPlan(loads=self._loads)
        self._loads, self._step_stores = [], []
        foreign = [item.request_id for item in scheduled if self._loaded_by_another(item)]
        for item in scheduled:
            tracked = self._requests.get(item.request_id)
            if not item.replaces_blocks:  # else allocated() has seen them
                self._touched_blocks.update(item.new_block_ids)
            if tracked is not None:
                if tracked.timings is not None:
                    self._time_load(tracked.timings)
                if item.replaces_blocks:
                    tracked.block_ids = list(item.new_block_ids)
                else:
                    tracked.block_ids.extend(item.new_block_ids)
                if not foreign:
                    self._plan_store(tracked, item, plan)
        if len(self._frozen) and self._touched_blocks:
            plan.fence_jobs = sorted(self._frozen.jobs_reading(self._touched_blocks))
        self._touched_blocks = set()
        return plan

    def stores_done(self, jobs: Mapping[int, int]) -> None:
        """Ranks have ended these stores, however: their blocks are free to be written again."""
        for job, ranks in jobs.items():
            entry = self._stores.get(job)
            if entry is None:
                continue
            request, left = entry
            if left > ranks:
                self._stores[job] = (request, left - ranks)
                continue
            del self._stores[job]
            self._frozen.thaw(job, request.jobs.pop(job))
            if request.timings is not None:
                request.timings.end("store")

    def loads_failed(self, invalid_blocks: set[int]) -> set[int]:
        """Loads beside the last step failed into these blocks. Returns every block whose KV may rest on them.

        The workers have dropped that step's stores, so they are planned again as the engine recomputes. Requests that ended while the
        step ran are among them: the engine has their blocks back, and would still find them by their hashes.
        """
        for request, stored_before in self._step_stores:
            request.stored_chunks = min(request.stored_chunks, stored_before)
        self._step_stores = []
        suspect = set(invalid_blocks)
        for request in (*self._requests.values(), *self._given_back):
            first = next((i for i, block in enumerate(request.block_ids) if block in invalid_blocks), None)
            if first is None:
                continue
            suspect.update(request.block_ids[first:])
            self._rewinds[request.request_id] = first * self._geometry.block_tokens
            request.stored_chunks = min(request.stored_chunks, first // self._geometry.blocks_per_chunk)
            request.commons_tokens = min(
                request.commons_tokens, max(0, first * self._geometry.block_tokens - (request.own_tokens or 0))
            )
            request.miss, request.load_failed = "load_failed", True
        self._counters.add("load_failures", 1)
        return suspect

    def take_rewinds(self) -> dict[str, int]:
        """Since the last call: how many tokens of a request are sound at most. Each must compute all beyond by itself, also where another
        computes the same blocks: that one may take several steps for it, or never come to it."""
        rewinds, self._rewinds = self._rewinds, {}
        return rewinds

    def request_load_failed(self, request_id: str) -> None:
        """A load between steps failed: the engine computes the whole request. It is not tried again: what a worker can't load now (it can't
        map the arena, its session is refused) it could not load for ever, and the request would never run."""
        request = self._requests.get(request_id)
        if request is not None:
            request.stored_chunks, request.commons_tokens, request.miss = 0, 0, "load_failed"
            request.load_failed = True
        self._counters.add("load_failures", 1)

    # internals ------------------------------------------------------------------------------------------------------

    def _reusable_tokens(self, request: Tracked) -> int:
        """The most of a prompt that any cache can give: whole chunks, and at least one token is left to compute."""
        chunk, block = self._geometry.chunk_tokens, self._geometry.block_tokens
        return min(request.prompt_tokens // chunk * chunk, (request.prompt_tokens - 1) // block * block)

    def _loaded_by_another(self, item: ScheduledRequest) -> bool:
        """Under MultiConnector: another connector fills blocks beside this very step. Whether it succeeds is known only afterwards, so
        nothing is stored meanwhile; and never of this request, where by then the next step is under way."""
        request = self._requests.get(item.request_id)
        if request is None or not item.replaces_blocks:
            return False
        beside = request.allocations == 1 and item.computed_tokens > request.expected_tokens
        request.allocations = 0
        if beside and self._geometry.asynchronous:
            request.reason = request.reason or "foreign_load"
        return beside

    def _time_load(self, timings: Timings) -> None:
        """A load between steps is over once its request runs; one beside a step, once the next is planned."""
        if self._geometry.asynchronous:
            timings.end("load")
        else:
            self._loading.append(timings)

    def _plan_store(self, request: Tracked, item: ScheduledRequest, plan: StepPlan) -> None:
        geometry = self._geometry
        complete = min(item.computed_tokens + item.scheduled_tokens, len(item.tokens)) // geometry.chunk_tokens
        begin = request.stored_chunks
        complete = min(complete, begin + STORE_CHUNKS_MAX)  # the rest is due in the next step
        if not self._store or complete <= begin or not self._questions.ready(request):
            return
        self._questions.extend_keys(request, item.tokens, complete)
        blocks = array("I", request.block_ids[begin * geometry.blocks_per_chunk : complete * geometry.blocks_per_chunk])
        if len(blocks) != (complete - begin) * geometry.blocks_per_chunk:
            request.reason = "block_table"  # never seen; a table shorter than what was computed must not be stored from
            return
        job = self._job()
        if request.timings is not None:
            request.timings.begin("store")
        plan.stores.append(
            StorePlan(
                job,
                request.tenant,
                bytes(request.keys[(begin - 1) * KEY : begin * KEY]) if begin else NO_PARENT,
                bytes(request.keys[begin * KEY : complete * KEY]),
                blocks,
                request.hints.by_chunk(request.prompt_tokens, geometry.chunk_tokens, begin, complete),
                request.eviction_hints,
            )
        )
        self._step_stores.append((request, begin))
        request.stored_chunks = complete
        request.jobs[job] = blocks
        self._stores[job] = (request, geometry.ranks)

    def _give_back(self, request: Tracked) -> None:
        """The request's blocks are the engine's again, while stores may still read them."""
        for job, blocks in request.jobs.items():
            self._frozen.freeze(job, blocks)
        request.block_ids = []

    def _job(self) -> int:
        job, self._next_job = self._next_job, self._next_job + 1
        return job
