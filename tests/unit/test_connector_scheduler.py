"""The scheduler's side of the connector, against a fake node at the wire."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from connector_fakes import FakeNode
from kvcommons_connector.identity import RequestIdentity, TextHints
from kvcommons_connector.questions import NO_PARENT
from kvcommons_connector.scheduler import SchedulerCore
from kvcommons_connector.stats import Counters
from kvcommons_connector.tracking import Geometry, ScheduledRequest, Tracked
from kvcommons_core.limits import KEY_BYTES

CHUNK, BLOCK = 256, 128
FINGERPRINT = bytes(32)


class Engine:
    """Plays vLLM's scheduler: one call after another in the order that vLLM keeps."""

    def __init__(
        self, node: FakeNode, *, asynchronous: bool = False, ranks: int = 1, dp_rank: int | None = None
    ) -> None:
        self.now_ms = 0.0
        self.node = node
        self.counters = Counters()
        self.core = SchedulerCore(
            Geometry(CHUNK, BLOCK, FINGERPRINT, asynchronous, ranks, dp_rank),
            node,
            self.counters,
            lambda: self.now_ms,
            load=True,
            store=True,
            lease_ms_max=10_000,
            fetch_ms_max=500,
        )
        self.next_block = 1

    def add(self, name: str, tokens: Sequence[int], **changes: object) -> Tracked:
        """A new request."""
        request = Tracked(name, len(tokens), RequestIdentity(), TextHints())
        for field, value in changes.items():
            setattr(request, field, value)
        self.core.add(request)
        return request

    def blocks(self, count: int) -> list[int]:
        """Fresh block ids."""
        self.next_block += count
        return list(range(self.next_block - count, self.next_block))

    def run_prefill(self, name: str, tokens: Sequence[int], *, own: int = 0) -> tuple[int, list[int]]:
        """Schedule a request's whole prompt in one step; returns what was loaded and its blocks. The workers end its stores."""
        external, _ = self.core.matched(name, tokens, own)
        assert external is not None
        blocks = self.blocks(-(-len(tokens) // BLOCK))
        self.core.allocated(name, blocks, external)
        computed = own + external
        plan = self.core.step([ScheduledRequest(name, tokens, computed, len(tokens) - computed, blocks, True)], ())
        for store in plan.stores:
            self.node.store(store.keys)
            self.core.stores_done({store.job: 1})
        for load in plan.loads:
            assert self.node.release(load.lease) == "ok"
        return external, blocks


@pytest.fixture(name="node")
def _node() -> FakeNode:
    return FakeNode()


@pytest.fixture(name="engine")
def _engine(node: FakeNode) -> Engine:
    return Engine(node)


def test_a_second_engine_finds_what_the_first_has_stored(node: FakeNode) -> None:
    """The same tokens have the same keys in every engine of one fingerprint, and a hit ends a block before the prompt's end."""
    tokens = list(range(1024))
    first, second = Engine(node), Engine(node)
    first.add("a", tokens)
    assert first.run_prefill("a", tokens)[0] == 0
    second.add("b", tokens)
    assert second.run_prefill("b", tokens)[0] == 1024 - BLOCK
    assert node.leases == {}


def test_a_question_that_is_asked_again_gives_the_same_answer_and_the_same_lease(
    node: FakeNode, engine: Engine
) -> None:
    """vLLM asks at every step while a request waits: that must neither cost a round trip nor pile up leases."""
    tokens = list(range(600))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    before = node.lookups
    assert {engine.core.matched("b", tokens, 0) for _ in range(5)} == {(512, False)}
    assert node.lookups == before + 1
    assert len(node.leases) == 1


def test_a_lease_that_has_aged_is_taken_anew(node: FakeNode, engine: Engine) -> None:
    """A request that waits for longer than a lease may live is asked for again, and the old lease is given back."""
    tokens = list(range(600))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    engine.core.matched("b", tokens, 0)
    old = set(node.leases)
    engine.now_ms += 10_001
    engine.core.matched("b", tokens, 0)
    assert len(node.leases) == 1
    assert set(node.leases) != old


def test_only_what_the_engine_lacks_is_offered(node: FakeNode, engine: Engine) -> None:
    """Tokens in the engine's own prefix cache are neither offered nor loaded; the load begins behind them."""
    tokens = list(range(1024))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    assert engine.core.matched("b", tokens, 512) == (384, False)
    blocks = engine.blocks(8)
    engine.core.allocated("b", blocks, 384)
    plan = engine.core.step([ScheduledRequest("b", tokens, 896, 128, blocks, True)], ())
    assert [(load.first_block, list(load.block_ids)) for load in plan.loads] == [(4, blocks[4:7])]
    assert plan.stores == []


def test_a_hit_that_the_engine_has_itself_gives_its_lease_back(node: FakeNode, engine: Engine) -> None:
    """A lease that is not used must not keep chunks from being evicted."""
    tokens = list(range(1024))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    assert engine.core.matched("b", tokens, 896) == (0, False)
    engine.add("c", tokens)
    engine.core.matched("c", tokens, 0)
    engine.core.allocated("c", engine.blocks(8), 0)
    assert node.leases == {}


def test_a_request_that_ends_while_it_waits_gives_its_lease_back(node: FakeNode, engine: Engine) -> None:
    """An aborted request leaves nothing behind."""
    tokens = list(range(1024))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    engine.core.matched("b", tokens, 0)
    assert node.leases
    engine.core.finish("b", 0)
    assert node.leases == {}


def test_chunks_are_stored_as_they_become_whole_generated_tokens_included(node: FakeNode, engine: Engine) -> None:
    """A chunk is stored in the step that completes it, with its parent's key; the next turn of a chat finds it."""
    tokens = list(range(300))
    engine.add("a", tokens)
    blocks = engine.blocks(3)
    engine.core.matched("a", tokens, 0)
    engine.core.allocated("a", blocks, 0)
    first = engine.core.step([ScheduledRequest("a", tokens, 0, 300, blocks, True)], ())
    assert [store.parent for store in first.stores] == [NO_PARENT]
    assert list(first.stores[0].block_ids) == blocks[:2]
    for position in range(300, 511):
        tokens.append(position)
        assert engine.core.step([ScheduledRequest("a", tokens, position, 1, (), False)], ()).stores == []
    more = engine.blocks(1)
    tokens.append(511)
    last = engine.core.step([ScheduledRequest("a", tokens, 511, 1, more, False)], ())
    assert len(last.stores) == 1
    assert last.stores[0].parent == first.stores[0].keys[-KEY_BYTES:]
    assert list(last.stores[0].block_ids) == [blocks[2], *more]


def test_tokens_that_are_only_guessed_are_not_stored(engine: Engine) -> None:
    """Speculative tokens have KV but may be rejected: a chunk counts only its known tokens."""
    tokens = list(range(250))
    engine.add("a", tokens)
    blocks = engine.blocks(3)
    engine.core.matched("a", tokens, 0)
    engine.core.allocated("a", blocks, 0)
    assert engine.core.step([ScheduledRequest("a", tokens, 0, 260, blocks, True)], ()).stores == []


def test_chunked_prefill_stores_each_part_once(engine: Engine) -> None:
    """Steps of 384 tokens complete chunks 1, 2-3, 4 and never the same twice."""
    tokens = list(range(1100))
    engine.add("a", tokens)
    blocks = engine.blocks(9)
    engine.core.matched("a", tokens, 0)
    engine.core.allocated("a", blocks, 0)
    seen = []
    for begin in range(0, 1100, 384):
        count = min(384, 1100 - begin)
        item = ScheduledRequest("a", tokens, begin, count, blocks if begin == 0 else (), begin == 0)
        seen.append([list(store.block_ids) for store in engine.core.step([item], ()).stores])
    assert seen == [[blocks[:2]], [blocks[2:6]], [blocks[6:8]]]


def test_blocks_given_back_are_fenced_while_a_store_reads_them(engine: Engine) -> None:
    """A finished request's blocks may be given to another at once: only then, and only for its own store, the worker waits."""
    tokens = list(range(512))
    engine.add("a", tokens)
    blocks = engine.blocks(4)
    engine.core.matched("a", tokens, 0)
    engine.core.allocated("a", blocks, 0)
    job = engine.core.step([ScheduledRequest("a", tokens, 0, 512, blocks, True)], ()).stores[0].job
    engine.core.finish("a", 512)
    other = list(range(5000, 5200))
    engine.add("b", other)
    engine.core.matched("b", other, 0)
    fresh = engine.blocks(1)
    engine.core.allocated("b", fresh, 0)
    assert engine.core.step([ScheduledRequest("b", other, 0, 100, fresh, True)], ()).fence_jobs == []
    plan = engine.core.step([ScheduledRequest("b", other, 100, 100, blocks[1:2], False)], ())
    assert plan.fence_jobs == [job]
    engine.core.stores_done({job: 1})
    engine.add("c", other)
    engine.core.allocated("c", blocks[2:], 0)
    assert engine.core.step([ScheduledRequest("c", other, 0, 200, blocks[2:], True)], ()).fence_jobs == []


def test_a_preempted_request_is_fenced_and_starts_over_with_its_new_blocks(node: FakeNode, engine: Engine) -> None:
    """Preemption gives blocks back in the very step that may overwrite them; what resumes loads its own stored chunks again."""
    tokens = list(range(600))
    engine.add("a", tokens)
    blocks = engine.blocks(5)
    engine.core.matched("a", tokens, 0)
    engine.core.allocated("a", blocks, 0)
    store = engine.core.step([ScheduledRequest("a", tokens, 0, 600, blocks, True)], ()).stores[0]
    other = list(range(7000, 7100))
    engine.add("b", other)
    engine.core.allocated("b", blocks[:1], 0)
    plan = engine.core.step([ScheduledRequest("b", other, 0, 100, blocks[:1], True)], ("a",))
    assert plan.fence_jobs == [store.job]
    node.store(store.keys)
    engine.core.stores_done({store.job: 1})
    tokens += [1, 2, 3]
    assert engine.core.matched("a", tokens, 0) == (512, False)
    again = engine.blocks(5)
    engine.core.allocated("a", again, 512)
    plan = engine.core.step([ScheduledRequest("a", tokens, 512, 91, again, True)], ())
    assert [list(load.block_ids) for load in plan.loads] == [again[:4]]
    assert plan.stores == []


def test_every_rank_must_end_a_store_before_its_blocks_are_free(node: FakeNode) -> None:
    """With two ranks one report is not enough."""
    engine = Engine(node, asynchronous=True, ranks=2)
    tokens = list(range(256))
    engine.add("a", tokens)
    blocks = engine.blocks(2)
    engine.core.allocated("a", blocks, 0)
    job = engine.core.step([ScheduledRequest("a", tokens, 0, 256, blocks, True)], ()).stores[0].job
    engine.core.finish("a", 256)
    engine.core.stores_done({job: 1})
    engine.add("b", tokens)
    engine.core.allocated("b", blocks, 0)
    assert engine.core.step([ScheduledRequest("b", tokens, 0, 100, blocks, True)], ()).fence_jobs == [job]


def test_a_failed_load_is_counted_recomputed_and_stored_from_what_is_recomputed(node: FakeNode, engine: Engine) -> None:
    """Blocks at and behind the failure are suspect; the stores of that step are planned again once the engine has computed."""
    tokens = list(range(1024))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    longer = tokens + list(range(2000, 2300))
    engine.add("b", longer)
    external, _ = engine.core.matched("b", longer, 0)
    assert external == 1024
    blocks = engine.blocks(11)
    engine.core.allocated("b", blocks, external)
    plan = engine.core.step([ScheduledRequest("b", longer, 1024, 300, blocks, True)], ())
    assert len(plan.stores) == 1
    suspects = engine.core.loads_failed(set(blocks[:8]))
    assert suspects == set(blocks)
    engine.core.stores_done({plan.stores[0].job: 1})
    node.present.clear()
    again = engine.core.step([ScheduledRequest("b", longer, 0, 1324, (), False)], ())
    assert [list(store.block_ids) for store in again.stores] == [blocks[:10]]
    engine.core.finish("b", 1324)
    assert node.feedbacks[-1]["commons_tokens"] == 0
    assert node.feedbacks[-1]["computed_tokens"] == 1324
    assert node.feedbacks[-1]["reason"] == "load_failed"


def test_a_request_that_ends_while_its_load_fails_leaves_no_suspect_block_in_the_engines_cache(
    node: FakeNode, engine: Engine
) -> None:
    """vLLM handles aborts after a step has run and before it hears of the failed load: it has the blocks back, hashed as if sound."""
    tokens = list(range(1024))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", [*tokens, *range(2000, 2300)])
    external, _ = engine.core.matched("b", tokens, 0)
    assert external == 896
    blocks = engine.blocks(11)
    engine.core.allocated("b", blocks, external)
    engine.core.step([ScheduledRequest("b", tokens, 896, 128, blocks, True)], ())
    engine.core.finish("b", 1024)
    assert engine.core.loads_failed(set(blocks[3:7])) == set(blocks[3:])
    assert engine.core.loads_failed({999}) == {999}


def test_each_request_that_shares_a_bad_block_computes_it_itself(node: FakeNode, engine: Engine) -> None:
    """vLLM has the first of them compute it; the token budget may cut that short while the others already read behind it."""
    tokens = list(range(1024))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    engine.add("c", tokens)
    external, _ = engine.core.matched("b", tokens, 0)
    assert external == 896
    blocks, tail = engine.blocks(8), engine.blocks(1)
    engine.core.allocated("b", blocks, external)
    assert engine.core.matched("c", tokens, 896) == (0, False)
    engine.core.allocated("c", [*blocks[:7], *tail], 0)
    items = [
        ScheduledRequest("b", tokens, 896, 128, blocks, True),
        ScheduledRequest("c", tokens, 896, 128, [*blocks[:7], *tail], True),
    ]
    engine.core.step(items, ())
    assert engine.core.loads_failed(set(blocks[2:7])) == {*blocks[2:], *tail}
    assert engine.core.take_rewinds() == {"b": 2 * BLOCK, "c": 2 * BLOCK}
    assert engine.core.take_rewinds() == {}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_whose_load_failed_is_not_offered_another(node: FakeNode, asynchronous: bool) -> None:
    """Where a worker can't load at all while the node answers lookups, asking again and again would keep the request waiting for ever."""
    tokens = list(range(1024))
    first = Engine(node)
    first.add("a", tokens)
    first.run_prefill("a", tokens)
    engine = Engine(node, asynchronous=asynchronous)
    engine.add("b", tokens)
    external, _ = engine.core.matched("b", tokens, 0)
    assert external
    blocks = engine.blocks(8)
    engine.core.allocated("b", blocks, external)
    loads = engine.core.step([], ()).loads
    node.release(loads[0].lease)
    if asynchronous:
        engine.core.request_load_failed("b")
    else:
        engine.core.loads_failed(set(blocks))
    assert engine.core.matched("b", tokens, 0) == (0, False)
    assert node.leases == {}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_another_connector_loads_beside_a_step_is_not_stored_in_that_step(
    node: FakeNode, asynchronous: bool
) -> None:
    """Under MultiConnector that load may still fail, and whoever shares its blocks computes on them; the next step knows."""
    tokens = list(range(1024))
    engine = Engine(node, asynchronous=asynchronous)
    for name in ("b", "c"):
        engine.add(name, tokens)
        assert engine.core.matched(name, tokens, 0) == (0, False)
    blocks = engine.blocks(8)
    engine.core.allocated("b", blocks, 0)
    engine.core.matched("c", tokens, 896)
    engine.core.allocated("c", blocks, 0)
    items = [ScheduledRequest(name, tokens, 896, 128, blocks, True) for name in ("b", "c")]
    assert engine.core.step(items, ()).stores == []
    after = engine.core.step([ScheduledRequest("b", [*tokens, 7], 1024, 1, (), False)], ())
    assert len(after.stores) == (0 if asynchronous else 1)


def test_what_another_connector_loaded_before_the_step_is_stored(node: FakeNode, engine: Engine) -> None:
    """vLLM gives blocks once more when such a load has ended."""
    tokens = list(range(1024))
    engine.add("b", tokens)
    assert engine.core.matched("b", tokens, 0) == (0, False)
    blocks = engine.blocks(8)
    engine.core.allocated("b", blocks, 0)
    engine.core.step([], ())
    engine.core.allocated("b", blocks, 0)
    assert len(engine.core.step([ScheduledRequest("b", tokens, 896, 128, blocks, True)], ()).stores) == 1


def test_a_prompt_of_very_many_chunks_is_stored_in_several_steps(node: FakeNode) -> None:
    """One store takes so many and no more: a longer one would be an error in the worker."""
    core = SchedulerCore(
        Geometry(16, 16, FINGERPRINT, False),
        node,
        Counters(),
        lambda: 0.0,
        load=False,
        store=True,
        lease_ms_max=1,
        fetch_ms_max=1,
    )
    count = 20_000
    tokens, blocks = [7] * (16 * count), list(range(count))
    core.add(Tracked("a", len(tokens), RequestIdentity(), TextHints()))
    core.allocated("a", blocks, 0)
    first = core.step([ScheduledRequest("a", tokens, 0, len(tokens), blocks, True)], ()).stores
    second = core.step([ScheduledRequest("a", [*tokens, 1], len(tokens), 1, [count], False)], ()).stores
    assert [len(store.keys) // KEY_BYTES for store in [*first, *second]] == [16_384, count - 16_384]
    assert second[0].parent == first[0].keys[-KEY_BYTES:]


def test_a_request_from_before_the_session_is_fenced_like_any_other(node: FakeNode, engine: Engine) -> None:
    """It arrived before the workers had reported; the blocks that it gets may still be read by a store."""
    tokens = list(range(512))
    engine.add("a", tokens)
    engine.core.matched("a", tokens, 0)
    blocks = engine.blocks(4)
    engine.core.allocated("a", blocks, 0)
    job = engine.core.step([ScheduledRequest("a", tokens, 0, 512, blocks, True)], ()).stores[0].job
    engine.core.finish("a", 512)
    engine.core.allocated("early", blocks, 0)
    assert engine.core.step([ScheduledRequest("early", tokens, 0, 512, blocks, True)], ()).fence_jobs == [job]


def test_another_requests_store_of_the_failed_step_is_planned_again(node: FakeNode, engine: Engine) -> None:
    """The workers drop all stores of a step in which a load failed, so every one of them is due again."""
    tokens, other = list(range(1024)), list(range(3000, 3512))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    engine.add("c", other)
    external, _ = engine.core.matched("b", tokens, 0)
    assert external
    blocks, others = engine.blocks(8), engine.blocks(4)
    engine.core.allocated("b", blocks, external)
    engine.core.allocated("c", others, 0)
    items = [
        ScheduledRequest("b", tokens, external, 1024 - external, blocks, True),
        ScheduledRequest("c", other, 0, 512, others, True),
    ]
    first = engine.core.step(items, ())
    engine.core.loads_failed(set(blocks[:7]))
    engine.core.stores_done({store.job: 1 for store in first.stores})
    second = engine.core.step([ScheduledRequest("c", [*other, 1], 512, 1, engine.blocks(1), False)], ())
    assert [list(store.block_ids) for store in second.stores] == [others]


def test_loading_between_steps_where_a_failure_could_not_be_taken_back(node: FakeNode) -> None:
    """Several ranks, or batches in flight: (n, True)."""
    tokens = list(range(1024))
    first = Engine(node)
    first.add("a", tokens)
    first.run_prefill("a", tokens)
    engine = Engine(node, asynchronous=True)
    engine.add("b", tokens)
    assert engine.core.matched("b", tokens, 0) == (896, True)


def test_a_node_that_is_away_is_a_miss_with_a_reason(node: FakeNode, engine: Engine) -> None:
    """The request is served, nothing is stored, and the reason is counted; when the node is back it is used."""
    node.up = False
    tokens = list(range(600))
    engine.add("a", tokens)
    assert engine.run_prefill("a", tokens)[0] == 0
    engine.core.finish("a", 600)
    assert engine.counters.take()["requests|reason=node_away"] == 1
    node.restart()
    engine.add("b", tokens)
    engine.run_prefill("b", tokens)
    assert len(node.present) == 2


def test_a_lease_of_a_former_life_of_the_node_is_not_used(node: FakeNode, engine: Engine) -> None:
    """After a restart the node is asked again."""
    tokens = list(range(600))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    engine.core.matched("b", tokens, 0)
    node.restart()
    node.present.clear()
    assert engine.core.matched("b", tokens, 0) == (0, False)


def test_unsalted_requests_of_a_multi_tenant_node_are_not_cached(node: FakeNode, engine: Engine) -> None:
    """A missing salt would be one namespace for all tenants."""
    node.multi_tenant = True
    tokens = list(range(600))
    engine.add("a", tokens)
    assert engine.run_prefill("a", tokens)[0] == 0
    assert node.present == set()
    engine.core.finish("a", 600)
    assert engine.counters.take()["requests|reason=unsalted"] == 1


def test_two_tenants_with_the_same_text_never_share(node: FakeNode, engine: Engine) -> None:
    """The salt is in the root of the chain, and the tenants' numbers differ."""
    tokens = list(range(600))
    a = engine.add("a", tokens, identity=RequestIdentity(salt="alice"))
    engine.run_prefill("a", tokens)
    b = engine.add("b", tokens, identity=RequestIdentity(salt="bob"))
    assert engine.core.matched("b", tokens, 0) == (0, False)
    assert a.tenant != b.tenant
    engine.add("c", tokens, identity=RequestIdentity(salt="alice"))
    assert engine.core.matched("c", tokens, 0) == (512, False)


def test_after_a_reset_nothing_from_before_is_found(node: FakeNode, engine: Engine) -> None:
    """New weights under the same name: other keys for what comes, and no store for what ran across the change."""
    tokens = list(range(600))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens)
    engine.core.reset(bytes(32))
    assert engine.core.matched("b", tokens, 0) == (0, False)
    engine.add("c", tokens)
    assert engine.core.matched("c", tokens, 0) == (0, False)
    engine.run_prefill("c", tokens)
    engine.add("d", tokens)
    assert engine.core.matched("d", tokens, 0) == (512, False)


def test_the_router_hears_what_was_really_reused(node: FakeNode, engine: Engine) -> None:
    """Own cache, commons and computed add up to the prompt; the request has the router's id."""
    tokens = list(range(1000))
    engine.add("a", tokens)
    engine.run_prefill("a", tokens)
    engine.add("b", tokens, hints=TextHints(request_id="router-7"))
    engine.run_prefill("b", tokens, own=256)
    engine.core.finish("b", 1000)
    assert node.feedbacks[-1] == {
        "request_id": "router-7",
        "prompt_tokens": 1000,
        "own_tokens": 256,
        "commons_tokens": 512,
        "computed_tokens": 232,
        "reason": "",
    }


def test_the_node_hears_which_chunks_were_missed(node: FakeNode, engine: Engine) -> None:
    """From the first that came from nowhere on, each by its key and the text that it stands for; that another tenant sent the text too."""
    tokens = list(range(1000))
    hints = TextHints("router-8", tuple(range(1, 5)), 8_192, other_tenant=True)
    engine.add("a", tokens, hints=hints)
    engine.run_prefill("a", tokens)
    engine.core.finish("a", 1000)
    told = node.feedbacks[-1]
    assert (told["reason"], told["missed_from"], told["other_tenant"]) == ("not_found", 0, 1)
    assert [len(key) for key in told["missed"]] == [33] * 3
    assert told["missed"][2].endswith(":0000000000000003")


def test_a_request_that_may_not_read_is_told_apart(node: FakeNode, engine: Engine) -> None:
    """Prompt logprobs need every position computed; its chunks are stored all the same."""
    tokens = list(range(600))
    engine.add("a", tokens)
    engine.core.skip("a", "prompt_logprobs", 0)
    blocks = engine.blocks(5)
    engine.core.allocated("a", blocks, 0)
    plan = engine.core.step([ScheduledRequest("a", tokens, 0, 600, blocks, True)], ())
    assert len(plan.stores) == 1
    engine.core.finish("a", 600)
    assert node.feedbacks[-1]["reason"] == "prompt_logprobs"


def test_chunks_that_the_engine_has_and_the_node_lost_are_stored_again(node: FakeNode, engine: Engine) -> None:
    """A node that was cleared fills up again from what engines hold in their own prefix caches."""
    tokens = list(range(1024))
    engine.add("a", tokens)
    engine.core.matched("a", tokens, 896)
    blocks = engine.blocks(8)
    engine.core.allocated("a", blocks, 0)
    plan = engine.core.step([ScheduledRequest("a", tokens, 896, 128, blocks, True)], ())
    assert [list(store.block_ids) for store in plan.stores] == [blocks]


def test_data_parallel_ranks_say_who_they_are_and_share_what_they_store() -> None:
    """Each has a cache of its own, so its reports name it; keys don't, so what one has stored the other loads."""
    node, tokens = FakeNode(), list(range(600))
    for rank, loaded in ((0, 0), (1, 512)):
        engine = Engine(node, dp_rank=rank)
        engine.add("r", tokens)
        assert engine.run_prefill("r", tokens)[0] == loaded
        engine.core.finish("r", len(tokens))
        assert (node.feedbacks[-1]["dp_rank"], node.feedbacks[-1]["commons_tokens"]) == (rank, loaded)
