"""Prewarm as a job, over HTTP: a stand-in answers where the engine would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from kvcommons_core.index.schema import Member, MemberInfo, MemberKind
from kvcommons_core.keys import namespace_root, token_keys
from kvcommons_node.engines import Engine
from kvcommons_node.pool_view import NoPool
from node_fakes import FINGERPRINT, committed, key
from node_served import SECRET, job_of, serve_in

USAGE = {"prompt_tokens": 300, "prompt_tokens_details": {"cached_tokens": 256}}


class EngineStandIn:
    """Counts what it is asked; refuses what begins with "bad", and fails the first time for what begins with "flaky"."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.hold: asyncio.Event | None = None
        self.url = ""
        self.reset_status = 200
        self._failed: set[str] = set()

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append((request.path, body, request.headers.get("Authorization")))
        if self.hold is not None:
            await self.hold.wait()
        if request.path == "/tokenize":
            return web.json_response({"tokens": [len(word) for word in body["prompt"].split()]})
        if request.path == "/reset_prefix_cache":
            return web.Response(status=self.reset_status)
        text = str(body.get("prompt") or body["messages"][0]["content"])
        if text.startswith("bad"):
            return web.Response(status=400, text="too long")
        if text.startswith("flaky") and text not in self._failed:
            self._failed.add(text)
            return web.Response(status=503)
        return web.json_response({"usage": USAGE})


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


@pytest.fixture
async def engine(stack: AsyncExitStack) -> EngineStandIn:
    made = EngineStandIn()
    await made.start(stack)
    return made


async def test_documents_go_through_the_engine_once(stack: AsyncExitStack, engine: EngineStandIn) -> None:
    """Chats and prompts go where they belong with the key; one that is refused is counted and named, one that fails for a moment is tried again."""
    node = await serve_in(stack, engines=[Engine("e", engine.url, "key")])
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    documents = [{"prompt": "a"}, chat, {"prompt": "bad one"}, {"prompt": "flaky"}]
    status, answer = await node.post("/v1/prewarm", {"model": "m", "documents": documents})
    assert (status, answer["created"], answer["job"]["kind"]) == (200, True, "prewarm")
    job = await job_of(node, answer["job"]["job"])
    assert (job["state"], job["progress"]["done"], job["progress"]["failed"]) == ("done", 3, 1)
    assert (job["result"]["prompt_tokens"], job["result"]["cached_tokens"]) == (900, 768)
    assert "document 3: " in job["result"]["failures"][0]
    assert len(engine.asked) == 5
    assert {path for path, _, _ in engine.asked} == {"/v1/completions", "/v1/chat/completions"}
    assert all(key == "Bearer key" and body["max_tokens"] == 1 for _, body, key in engine.asked)


async def test_a_job_of_which_nothing_went_well_has_failed(stack: AsyncExitStack, engine: EngineStandIn) -> None:
    """The first refusal is the reason."""
    node = await serve_in(stack, engines=[Engine("e", engine.url)])
    _, answer = await node.post("/v1/prewarm", {"model": "m", "documents": [{"prompt": "bad"}]})
    job = await job_of(node, answer["job"]["job"])
    assert (job["state"], "too long" in job["error"]) == ("failed", True)


async def test_a_running_job_is_cancelled(stack: AsyncExitStack, engine: EngineStandIn) -> None:
    """Cancelling ends it where it is; the call may be repeated."""
    engine.hold = asyncio.Event()
    node = await serve_in(stack, engines=[Engine("e", engine.url)])
    _, answer = await node.post("/v1/prewarm", {"model": "m", "documents": [{"prompt": "a"}], "name": "docs"})
    for _ in range(2):
        status, job = await node.post("/v1/jobs/cancel", {"job": answer["job"]["job"]})
        assert (status, job["state"]) == (200, "cancelled")
    engine.hold.set()
    assert (await node.get("/v1/jobs?state=cancelled"))[1]["jobs"][0]["name"] == "docs"
    assert (await node.post("/v1/jobs/cancel", {"job": "0" * 16}))[0] == 404


async def test_without_an_engine_nothing_is_begun(stack: AsyncExitStack) -> None:
    """The refusal says which setting would name one."""
    node = await serve_in(stack)
    status, answer = await node.post("/v1/prewarm", {"model": "m", "documents": [{"prompt": "a"}]})
    assert (status, "engine_urls" in answer["error"]["remedy"]) == (409, True)
    assert (await node.get("/v1/jobs"))[1]["kept"] == 0


async def test_engines_of_this_node_are_known_from_the_index(stack: AsyncExitStack, engine: EngineStandIn) -> None:
    """Where none is configured, documents go to the engines that a router has listed with this node, not to others'."""

    class Pool(NoPool):
        async def members(self) -> list[Member]:
            infos = [
                MemberInfo(name="engine:a", kind=MemberKind.ENGINE, address=engine.url, node="node-a"),
                MemberInfo(name="engine:b", kind=MemberKind.ENGINE, address="http://127.0.0.1:9", node="node-b"),
            ]
            return [Member(slot, 1, 0, "x", 0, info) for slot, info in enumerate(infos)]

    node = await serve_in(stack, pool=Pool())
    _, answer = await node.post("/v1/prewarm", {"model": "m", "documents": [{"prompt": "a"}]})
    assert (await job_of(node, answer["job"]["job"]))["state"] == "done"


@pytest.mark.parametrize("document", [{}, {"prompt": "a", "messages": []}, {"prompt": ""}, {"text": "a"}])
async def test_what_is_no_document_is_refused(stack: AsyncExitStack, document: dict[str, object]) -> None:
    """Before anything is sent."""
    node = await serve_in(stack, engines=[Engine("e", "http://127.0.0.1:9")])
    assert (await node.post("/v1/prewarm", {"model": "m", "documents": [document]}))[0] == 400


async def test_a_move_is_a_job_and_wants_two_places(stack: AsyncExitStack) -> None:
    """From memory to the disk, by the chain's keys; a place that there is not, or twice the same, is refused."""
    node = await serve_in(stack)
    node.core.known_tiers = [("disk", "serving", "", {})]
    node.core.emit(committed(1), committed(2))
    chain = {"fingerprint": FINGERPRINT.hex(), "keys": [key(1).hex(), key(2).hex()]}
    _, answer = await node.post("/v1/move", {**chain, "source": "memory", "target": "disk"})
    job = await job_of(node, answer["job"]["job"])
    assert (job["state"], job["result"]["chunks"], node.core.chunks) == ("done", 2, {})
    for source, target, status in (("memory", "tape", 404), ("disk", "disk", 409)):
        assert (await node.post("/v1/move", {**chain, "source": source, "target": target}))[0] == status


async def test_a_move_to_another_node_wants_a_peer(stack: AsyncExitStack) -> None:
    """One that is known, from a place that there is, into its memory; whatever else is refused before a job begins."""
    node = await serve_in(stack)
    node.core.emit(committed(1))
    chain = {"fingerprint": FINGERPRINT.hex(), "keys": [key(1).hex()]}
    assert (await node.post("/v1/move", {**chain, "node": "node-b"}))[1]["error"]["message"].startswith(
        "this node has no peers"
    )
    node.core.known_tiers = [("disk", "serving", "", {}), ("peer", "serving", "", {})]
    node.core.known_peers = [("node-b", "127.0.0.1", 1, True, "", {})]
    for more, status, field in (
        ({"node": "node-c"}, 404, "node"),
        ({"node": "node-a"}, 409, "node"),
        ({"node": "node-b", "target": "disk"}, 409, "target"),
        ({"node": "node-b", "source": "tape"}, 404, "source"),
    ):
        found, answer = await node.post("/v1/move", {**chain, **more})
        assert (found, answer["error"]["field"]) == (status, field)
    _, answer = await node.post("/v1/move", {**chain, "node": "node-b"})
    job = await job_of(node, answer["job"]["job"])
    assert (job["state"], "in no index" in job["error"], len(node.core.chunks)) == ("failed", True, 1)


async def test_a_fetch_is_of_a_peer_and_brings_its_chunks(stack: AsyncExitStack) -> None:
    """In the layout that it is told, also of a fingerprint that this node has never heard of."""
    node = await serve_in(stack)
    shard = {"layer_begin": 0, "layers": 2, "head_begin": 0, "heads": 4, "slot_bytes": 4_096}
    layout = {"chunk_tokens": 256, "tenant": 7, "shards": [shard]}
    asked = {"fingerprint": FINGERPRINT.hex(), "keys": [key(1).hex()], "node": "node-b", "layout": layout}
    assert (await node.post("/v1/fetch", asked))[0] == 409
    node.core.known_tiers = [("peer", "serving", "", {})]
    node.core.known_peers = [("node-b", "127.0.0.1", 1, True, "", {})]
    node.core.elsewhere = {"node-b": {key(1): (FINGERPRINT, ())}}
    _, answer = await node.post("/v1/fetch", asked)
    job = await job_of(node, answer["job"]["job"])
    assert (job["state"], job["result"], set(node.core.chunks)) == ("done", {"chunks": 1, "were_there": 0}, {key(1)})
    assert node.core.brought_as[0] == ("node-b", 256, 7, [((0, 2, 0, 4), 4_096)])


async def test_a_text_is_looked_up_by_the_tokens_that_an_engine_makes_of_it(
    stack: AsyncExitStack, engine: EngineStandIn
) -> None:
    """The engine's own tokenizer decides; without an engine, or one that does not tell, the caller is told what to do."""
    node = await serve_in(stack, engines=[Engine("e", engine.url)])
    keys = token_keys(namespace_root(FINGERPRINT, SECRET, "t"), [1, 2, 3, 4], 2)
    node.core.chunks = {keys[:32]: (FINGERPRINT, ())}
    asked = {"fingerprint": FINGERPRINT.hex(), "text": "a bb ccc dddd", "salt": "t", "chunk_tokens": 2, "model": "m"}
    _, answer = await node.post("/v1/lookup", asked)
    assert (answer["chunks"], answer["hit_chunks"], engine.asked[0][1]["model"]) == (2, 1, "m")
    deaf = await serve_in(stack, engines=[Engine("e", "http://127.0.0.1:9")])
    status, answer = await deaf.post("/v1/lookup", asked)
    assert (status, answer["error"]["field"]) == (503, "text")


async def test_the_engines_own_caches_are_reset_where_they_allow_it(
    stack: AsyncExitStack, engine: EngineStandIn
) -> None:
    """As a whole and told so; an engine without the call, or one that fails, is told by its name; a lookup says what is not known."""
    node = await serve_in(stack, engines=[Engine("e", engine.url)])
    for status, outcome, words in (
        (200, "cleared", "as a whole only"),
        (404, "not_supported", "DEV_MODE"),
        (500, "failed", "500"),
    ):
        engine.reset_status = status
        _, answer = await node.post("/v1/clear", {"salt": "t", "engines": True})
        assert (answer["engines"][0]["outcome"], words in answer["engines"][0]["detail"]) == (outcome, True)
    keys = {"fingerprint": FINGERPRINT.hex(), "keys": [key(1).hex()], "engines": True}
    assert "tells nobody" in (await node.post("/v1/lookup", keys))[1]["limits"][0]
