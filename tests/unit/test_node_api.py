"""The control API over HTTP: answers, refusals, limits and the token. The core behind it is a fake at its seam."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from kvcommons_core.keys import namespace_root, token_keys
from kvcommons_node.api import openapi
from kvcommons_node.api.server import BODY_BYTES_MAX, Access
from kvcommons_node.fingerprints import process_name
from node_fakes import FINGERPRINT, committed, key
from node_served import SECRET, Serve, serve_in

TOKEN = "0123456789abcdef"


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:
        yield partial(serve_in, stack)


async def test_lookup_by_keys_counts_the_leading_chunks(serve: Serve) -> None:
    """A lookup by keys says how many leading chunks are here, not how many at all."""
    node = await serve()
    node.core.emit(committed(1), committed(2), committed(4))
    body = {"fingerprint": FINGERPRINT.hex(), "keys": [key(number).hex() for number in (1, 2, 3, 4)]}
    status, answer = await node.post("/v1/lookup", body)
    assert (status, answer["chunks"], answer["hit_chunks"], answer["hit_tokens"]) == (200, 4, 2, 512)


async def test_lookup_by_tokens_derives_the_keys_of_that_salt(serve: Serve) -> None:
    """Tokens are hashed under the salt's namespace: the right salt finds what another salt does not."""
    node = await serve()
    tokens = list(range(600))
    keys = token_keys(namespace_root(FINGERPRINT, SECRET, "tenant"), tokens, 256)
    node.core.chunks = {keys[:32]: (FINGERPRINT, ()), keys[32:64]: (FINGERPRINT, ())}
    body = {"fingerprint": FINGERPRINT.hex(), "tokens": tokens, "salt": "tenant"}
    _, found = await node.post("/v1/lookup", body)
    _, other = await node.post("/v1/lookup", {**body, "salt": "another"})
    assert (found["chunks"], found["hit_tokens"]) == (2, 512)
    assert (other["chunks"], other["hit_tokens"]) == (2, 0)


async def test_clearing_all_fences_what_was_published(serve: Serve) -> None:
    """After clearing everything the node begins a new epoch, so that no index entry of before is believed."""
    node = await serve()
    node.core.emit(committed(1), committed(2))
    status, answer = await node.post("/v1/clear", {"all": True})
    assert (status, answer["chunks"]) == (200, 2)
    assert node.index.told == [("epoch", "cleared")]


async def test_clearing_one_fingerprint_leaves_the_others(serve: Serve) -> None:
    """Clearing a fingerprint removes its chunks only, and begins no epoch."""
    node = await serve()
    node.core.emit(committed(1))
    _, other = await node.post("/v1/clear", {"fingerprint": "ff" * 32})
    _, own = await node.post("/v1/clear", {"fingerprint": FINGERPRINT.hex()})
    assert (other["chunks"], own["chunks"], node.index.told) == (0, 1, [])


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"fingerprint": "zzzz", "keys": ["00" * 32]}, "fingerprint", "4 to 64 hexadecimal digits"),
        ({"fingerprint": "00" * 32, "keys": ["0"]}, "keys.0", "64 hexadecimal digits"),
        ({"fingerprint": "00" * 32}, None, "exactly one of 'keys', 'tokens' and 'text'"),
        ({"fingerprint": "00" * 32, "keys": []}, "keys", "at least 1"),
        ({"fingerprint": "00" * 32, "tokens": [1, -1]}, "tokens.1", "greater than or equal to 0"),
        ({"fingerprint": "00" * 32, "tokens": [1], "chunk_token": 3}, "chunk_token", "unknown field"),
        ({"fingerprint": "00" * 32, "tokens": [1], "chunk_tokens": 0}, "chunk_tokens", "greater than or equal to 1"),
        ([1], None, "object"),
    ],
)
async def test_a_bad_lookup_names_field_value_and_remedy(
    serve: Serve, body: object, field: str | None, words: str
) -> None:
    """A refused request says which field is wrong, how, and where the fields are described."""
    node = await serve()
    status, answer = await node.post("/v1/lookup", body)
    assert status == 400
    assert answer["error"]["field"] == field
    assert words in answer["error"]["message"]
    assert answer["error"]["remedy"]


@pytest.mark.parametrize("body", [{}, {"all": False}, {"all": True, "fingerprint": "00" * 32}])
async def test_clear_wants_exactly_one_target(serve: Serve, body: object) -> None:
    """An empty clear is refused: forgetting everything must be asked for by name."""
    node = await serve()
    node.core.emit(committed(1))
    status, answer = await node.post("/v1/clear", body)
    assert (status, len(node.core.chunks)) == (400, 1)
    assert "exactly one" in answer["error"]["message"]


async def test_a_body_that_is_no_json_is_refused(serve: Serve) -> None:
    """Broken JSON, and JSON sent as another type (what a foreign web page could send), are refused."""
    node = await serve()
    headers = {"Content-Type": "application/json"}
    async with node.http.post(node.url + "/v1/clear", data=b"{", headers=headers) as broken:
        assert (broken.status, (await broken.json())["error"]["remedy"]) == (400, "send one JSON object")
    async with node.http.post(node.url + "/v1/clear", data=b'{"all": true}') as disguised:
        assert disguised.status == 415
    assert node.index.told == []


async def test_statistics_list_fingerprints_and_their_first_digits_are_enough(serve: Serve) -> None:
    """What statistics list can be looked up and cleared by as many digits as make it one; fewer are refused with what they may mean."""
    node = await serve()
    first, second = bytes.fromhex("abcd01" + "00" * 29), bytes.fromhex("abcd02" + "00" * 29)
    node.core.chunks = {key(1): (first, ()), key(2): (first, ()), key(3): (second, ())}
    listed = (await node.get("/v1/stats"))[1]["fingerprints"]
    assert [(one["fingerprint"], one["chunks"]) for one in listed] == [(first.hex(), 2), (second.hex(), 1)]
    keys = [key(1).hex()]
    assert (await node.post("/v1/lookup", {"fingerprint": "ABCD01", "keys": keys}))[1]["hit_chunks"] == 1
    status, answer = await node.post("/v1/clear", {"fingerprint": "abcd"})
    assert (status, answer["error"]["remedy"]) == (400, "give more digits")
    assert "abcd010000" in answer["error"]["message"]
    status, answer = await node.post("/v1/lookup", {"fingerprint": "ffff", "keys": keys})
    assert (status, answer["error"]["field"]) == (404, "fingerprint")
    assert "kvcommons stats" in answer["error"]["remedy"]
    assert (await node.post("/v1/clear", {"fingerprint": "abcd02"}))[1]["chunks"] == 1


def test_a_process_is_named_as_it_calls_itself(tmp_path: Path) -> None:
    """A title is shown; for an interpreter's path the kernel's short name; nothing for one that is not there."""
    for pid, cmdline in ((1, b"VLLM::EngineCore\0"), (2, b"/usr/bin/python3\0-m\0x\0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes(cmdline)
        (tmp_path / str(pid) / "comm").write_text("python3\n")
    assert [process_name(pid, tmp_path) for pid in (1, 2, 3)] == ["VLLM::EngineCore", "python3", ""]


async def test_unknown_paths_and_methods_say_what_there_is(serve: Serve) -> None:
    """A wrong path lists the right ones; a wrong method names the allowed one."""
    node = await serve()
    status, answer = await node.get("/v2/stats")
    assert status == 404
    assert "/v1/stats" in answer["error"]["remedy"]
    status, answer = await node.get("/v1/clear")
    assert (status, answer["error"]["remedy"]) == (405, "use POST /v1/clear")


async def test_a_body_over_the_limit_is_refused(serve: Serve) -> None:
    """A body over the limit is answered with 413 and never parsed."""
    node = await serve()
    headers = {"Content-Type": "application/json"}
    async with node.http.post(
        node.url + "/v1/lookup", data=io.BytesIO(bytes(BODY_BYTES_MAX + 1)), headers=headers
    ) as response:
        assert response.status == 413
        assert (await response.json())["error"]["type"] == "too_large"


async def test_the_token_guards_the_control_api_only(serve: Serve) -> None:
    """With a token set, /v1 wants it; health and metrics stay open for probes."""
    node = await serve(Access(token=TOKEN, loopback=False))
    assert (await node.get("/v1/stats"))[0] == 401
    assert (await node.get("/v1/stats", headers={"Authorization": f"Bearer {TOKEN[:-1]}x"}))[0] == 401
    assert (await node.get("/v1/stats", headers={"Authorization": f"Bearer {TOKEN}"}))[0] == 200
    assert (await node.get("/healthz"))[0] == 200


async def test_beyond_loopback_without_a_token_the_control_api_is_closed(serve: Serve) -> None:
    """A node that listens for the network and has no token lets nobody clear its cache."""
    node = await serve(Access(token=None, loopback=False))
    status, answer = await node.post("/v1/clear", {"all": True})
    assert (status, answer["error"]["type"]) == (403, "forbidden")
    assert "control_token_file" in answer["error"]["remedy"]


async def test_readiness_says_that_redis_is_away(serve: Serve) -> None:
    """Without Redis the node is ready, because it serves its own machine, and says what is missing."""
    node = await serve()
    node.index.state = node.index.state.model_copy(update={"state": "disconnected", "detail": "connection refused"})
    status, answer = await node.get("/readyz")
    assert (status, answer["ready"]) == (200, True)
    assert "connection refused" in answer["reason"]


async def test_a_core_that_does_not_serve_is_not_ready(serve: Serve) -> None:
    """Until the core serves, and once it stops, /readyz is 503 while /healthz stays 200; statistics are empty."""
    node = await serve()
    node.control.set_serving(False)
    assert (await node.get("/readyz"))[0] == 503
    assert (await node.get("/healthz"))[0] == 200
    status, stats = await node.get("/v1/stats")
    assert (status, stats["core"]) == (200, {})


async def test_an_ill_tier_is_told_and_costs_no_readiness(serve: Serve) -> None:
    """Engines are served without it: /readyz is 200 and says what is wrong, statistics and metrics have the tier's own counters."""
    node = await serve()
    node.core.known_tiers = [
        ("disk", "degraded", "/mnt/a: no space", {"capacity_bytes": 1 << 30, "shards": 5, "gets": 2})
    ]
    status, ready = await node.get("/readyz")
    assert (status, ready["reason"]) == (200, "the disk tier is degraded: /mnt/a: no space")
    assert ready["tiers"][0]["health"] == "degraded"
    _, stats = await node.get("/v1/stats")
    assert stats["tiers"][0]["counters"]["shards"] == 5
    async with node.http.get(node.url + "/metrics") as response:
        text = await response.text()
    assert 'kvcommons_node_tier_health{state="degraded",tier="disk"} 1.0' in text
    assert 'kvcommons_node_tier_bytes{tier="disk",use="capacity"} 1.073741824e+09' in text
    assert 'kvcommons_node_tier_operations_total{operation="gets",tier="disk"} 2.0' in text


async def test_the_openapi_document_describes_what_is_served(serve: Serve) -> None:
    """Every operation is in the OpenAPI 3.1 document, and every reference in it resolves."""
    node = await serve()
    status, document = await node.get("/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    served = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert served == {(operation.path, operation.method) for operation in openapi.OPERATIONS}
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]


async def test_metrics_are_an_exposition_with_help_for_every_family(serve: Serve) -> None:
    """/metrics shows the core's counters, each family with its help, and the index' state."""
    node = await serve()
    async with node.http.get(node.url + "/metrics") as response:
        text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain")
    assert "kvcommons_node_lookups_total 7.0" in text
    assert 'kvcommons_node_slots{state="sealed"} 3.0' in text
    assert "kvcommons_node_index_connected 1.0" in text
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    helped = {
        line.split(maxsplit=3)[2] for line in text.splitlines() if line.startswith("# HELP") and len(line.split()) > 3
    }
    assert families == helped
