"""Pins, requests, events and the audit log of the control API, over HTTP. The core behind it is a fake at its seam."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import aiohttp
import pytest
from kvcommons_node.api.server import Access
from node_fakes import FINGERPRINT, committed, feedback, freed, key
from node_served import PINNED_BYTES_MAX, Serve, Served, serve_in

TOKEN = "0123456789abcdef"


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:
        yield partial(serve_in, stack)


def chain(*numbers: int, **more: object) -> dict[str, object]:
    return {"fingerprint": FINGERPRINT.hex(), "keys": [key(number).hex() for number in numbers], **more}


async def test_a_pin_is_made_listed_and_ended(serve: Serve) -> None:
    """What is pinned is listed with its size and what is left of its time; ending it twice is no error."""
    node = await serve()
    node.core.emit(committed(1), committed(2))
    status, made = await node.post("/v1/pin", chain(1, 2, 3, name="doc", ttl_seconds=60))
    assert status == 200
    assert (made["asked_chunks"], made["pin"]["chunks"], made["pinned_bytes"]) == (3, 2, 8_192)
    assert node.core.pinned == {key(1), key(2)}
    status, listed = await node.get("/v1/pins")
    assert [(one["name"], one["chunks"], one["bytes"]) for one in listed["pins"]] == [("doc", 2, 8_192)]
    assert 0 < listed["pins"][0]["ttl_seconds"] <= 60
    assert await node.post("/v1/unpin", {"name": "doc"}) == (200, {"pins": 1, "chunks": 2})
    assert await node.post("/v1/unpin", {"name": "doc"}) == (200, {"pins": 0, "chunks": 0})
    assert node.core.pinned == set()


async def test_pins_are_listed_in_pages(serve: Serve) -> None:
    """`next` of a page is `after` of the following one, until it is empty."""
    node = await serve()
    node.core.emit(*(committed(number) for number in range(1, 4)))
    for number in range(1, 4):
        await node.post("/v1/pin", chain(number, name=f"pin-{number}"))
    _, first = await node.get("/v1/pins?limit=2")
    _, second = await node.get(f"/v1/pins?limit=2&after={first['next']}")
    assert [one["name"] for page in (first, second) for one in page["pins"]] == ["pin-1", "pin-2", "pin-3"]
    assert (first["total"], second["next"]) == (3, "")


@pytest.mark.parametrize(
    ("body", "status", "field", "words"),
    [
        (chain(9), 404, "keys", "none of the chain's 1 whole chunks is here"),
        (chain(1, ttl_seconds=0), 400, "ttl_seconds", "greater than or equal to 1"),
        (chain(1, name="../../x"), 400, "name", "a name of letters, digits"),
        (chain(1, ttl=5), 400, "ttl", "unknown field"),
        (chain(1, 2, 3, 4, 5), 409, "keys", f"of {PINNED_BYTES_MAX} at most"),
        ({"fingerprint": FINGERPRINT.hex()}, 400, None, "give exactly one of 'keys', 'tokens' and 'text'"),
    ],
)
async def test_a_pin_that_can_t_be_made_is_refused_by_field(
    serve: Serve, body: object, status: int, field: str | None, words: str
) -> None:
    """The refusal names the field, what is wrong and what to do; nothing is pinned."""
    node = await serve()
    node.core.emit(*(committed(number) for number in range(1, 6)))
    answered, answer = await node.post("/v1/pin", body)
    assert (answered, answer["error"]["field"]) == (status, field)
    assert words in answer["error"]["message"]
    assert answer["error"]["remedy"]
    assert node.core.pinned == set()


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "page=2", "limit=1001"])
async def test_a_bad_page_is_refused_by_field(serve: Serve, query: str) -> None:
    """A parameter of the query is checked like a field of a body."""
    status, answer = await (await serve()).get(f"/v1/pins?{query}")
    assert (status, answer["error"]["field"]) == (400, query.partition("=")[0])


async def test_clearing_ends_the_pins_of_what_was_cleared(serve: Serve) -> None:
    """A clear takes pinned chunks too, ends their pins and says how many."""
    node = await serve()
    node.core.emit(committed(1))
    await node.post("/v1/pin", chain(1))
    _, cleared = await node.post("/v1/clear", {"fingerprint": FINGERPRINT.hex()})
    assert (cleared["chunks"], cleared["pins"]) == (1, 1)
    assert (await node.get("/v1/pins"))[1]["total"] == 0


async def test_what_a_request_reused_can_be_asked_for(serve: Serve) -> None:
    """An engine's report is found under the request's name, with the reason in words."""
    node = await serve()
    node.core.emit(feedback(json.dumps({"request_id": "r/1 é", "prompt_tokens": 9, "reason": "not_found"})))
    node.pump.drain()
    _, answer = await node.get("/v1/requests", params={"request": "r/1 é"})
    assert [(one["request_id"], one["reason"]) for one in answer["requests"]] == [("r/1 é", "not_found")]
    assert "evicted" in answer["requests"][0]["explanation"]


async def follow(node: Served, response: aiohttp.ClientResponse, lines: int) -> list[str]:
    """So many lines of the stream; the pump is driven by hand."""
    node.pump.drain()
    found: list[str] = []
    async for line in response.content:
        if line.strip():
            found.append(line.decode().strip())
        if len(found) == lines:
            break
    return found


async def test_events_are_streamed_as_they_happen(serve: Serve) -> None:
    """A follower gets the kinds that it asked for, each with its data, until it leaves."""
    node = await serve()
    async with node.http.get(node.url + "/v1/events?kinds=freed,request") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert await follow(node, response, 1) == [": following"]
        node.core.emit(committed(1), freed(1), feedback('{"request_id": "r", "own_tokens": 3}'))
        lines = await follow(node, response, 4)
    assert lines[0] == "event: freed"
    assert json.loads(lines[1].removeprefix("data: ")) == {
        "fingerprint": FINGERPRINT.hex(),
        "key": key(1).hex(),
        "age_seconds": 1.5,
    }
    assert lines[2] == "event: request"
    assert json.loads(lines[3].removeprefix("data: "))["own_tokens"] == 3


async def test_a_stream_ends_with_the_node(serve: Serve) -> None:
    """A follower does not hold up the node's end."""
    node = await serve()
    async with node.http.get(node.url + "/v1/events") as response:
        await follow(node, response, 1)
        node.control.close_events()
        assert (await response.read()).strip() == b""
    assert not node.control.feed.followed


async def test_the_stream_needs_the_token_too(serve: Serve) -> None:
    """Keys of chunks are told only to who may use the control API."""
    node = await serve(Access(token=TOKEN, loopback=False))
    assert (await node.get("/v1/events"))[0] == 401


async def test_what_changes_something_is_written_into_the_audit_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asked for what and what came of it, refused ones too; no salt, and of lists only the length."""
    caplog.set_level(logging.INFO, "kvcommons.audit")
    node = await serve(Access(token=TOKEN, loopback=False))
    node.core.emit(committed(1))
    known = {"Authorization": f"Bearer {TOKEN}"}
    await node.post("/v1/clear", {"all": True})
    await node.post("/v1/pin", chain(1, name="doc"), headers=known)
    tokens = {"fingerprint": FINGERPRINT.hex(), "tokens": [1, 2], "salt": "tenant-secret"}
    await node.post("/v1/pin", tokens, headers=known)
    await node.post("/v1/lookup", chain(1), headers=known)
    said = [(vars(record)["operation"], vars(record)["status"]) for record in caplog.records]
    assert said == [("clear", 401), ("pin", 200), ("pin", 404)]
    assert vars(caplog.records[1])["asked"] == {"fingerprint": FINGERPRINT.hex(), "keys": 1, "name": "doc"}
    assert vars(caplog.records[2])["asked"]["tokens"] == 2
    assert "tenant-secret" not in caplog.text
