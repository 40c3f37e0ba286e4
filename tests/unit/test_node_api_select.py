"""Lookup and clear of some chunks, over HTTP. The core behind it is a fake at its seam."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from kvcommons_core.index.schema import Member
from kvcommons_core.keys import namespace_root, token_keys
from kvcommons_node.api.audit import summary
from kvcommons_node.api.models_cluster import ClusterRequest
from kvcommons_node.api.models_pins import PinRequest
from kvcommons_node.model_names import NAMES_PER_FINGERPRINT_MAX, ModelNames
from kvcommons_node.pool_view import Place
from kvcommons_node.selecting import tenant_of
from node_fakes import FINGERPRINT, committed, feedback, key
from node_served import SECRET, Serve, serve_in


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:
        yield partial(serve_in, stack)


class Pool:
    """Two nodes hold the first chunk, one the second."""

    async def members(self) -> list[Member]:
        return []

    async def holders(self, keys: Sequence[bytes]) -> list[tuple[Place, ...]]:
        held: list[tuple[Place, ...]] = [(("node-a", "memory"), ("node-b", "disk")), (("node-b", "disk"),)]
        return [*held[: len(keys)], *[()] * (len(keys) - 2)]

    async def close(self) -> None: ...


def chain(*numbers: int, **more: object) -> dict[str, object]:
    return {"fingerprint": FINGERPRINT.hex(), "keys": [key(number).hex() for number in numbers], **more}


async def test_lookup_says_where_each_chunk_is(serve: Serve) -> None:
    """Chunks in the same places are one run; the sums count each place by itself; a gap ends what is here."""
    node = await serve()
    node.core.known_tiers = [("disk", "serving", "", {})]
    node.core.emit(committed(1), committed(2))
    node.core.behind = [(key(number), FINGERPRINT, (), "disk") for number in (2, 3, 5)]
    _, answer = await node.post("/v1/lookup", chain(1, 2, 3, 4, 5))
    assert (answer["chunks"], answer["hit_chunks"], answer["here_chunks"]) == (5, 2, 3)
    assert answer["places"] == {"memory": 2, "disk": 3}
    places = [(run["first"], run["chunks"], run["places"]) for run in answer["runs"]]
    assert places == [
        (0, 1, ["memory"]),
        (1, 1, ["memory", "disk"]),
        (2, 1, ["disk"]),
        (3, 1, []),
        (4, 1, ["disk"]),
    ]


async def test_lookup_over_the_index_names_the_nodes(serve: Serve) -> None:
    """Where the index is asked, each run names the members that hold it."""
    node = await serve(pool=Pool())
    node.core.emit(committed(1))
    _, answer = await node.post("/v1/lookup", chain(1, 2, 3, nodes=True))
    nodes = [[(one["node"], one["tier"]) for one in run["nodes"]] for run in answer["runs"]]
    assert nodes == [[("node-a", "memory"), ("node-b", "disk")], [("node-b", "disk")], []]


async def test_without_an_index_lookup_over_it_is_refused(serve: Serve) -> None:
    """The refusal says that the node is alone and how it would not be."""
    node = await serve()
    status, answer = await node.post("/v1/lookup", chain(1, nodes=True))
    assert (status, "index.url" in answer["error"]["remedy"]) == (409, True)


async def test_what_is_cleared_is_passed_to_the_core_as_it_was_named(serve: Serve) -> None:
    """A tenant by its salt, a text by its tokens, an age in milliseconds, tiers by name."""
    node = await serve()
    node.core.known_tiers = [("disk", "serving", "", {})]
    tokens = list(range(600))
    keys = token_keys(namespace_root(FINGERPRINT, SECRET, "t"), tokens, 256)
    fingerprint = FINGERPRINT.hex()
    for body in (
        {"salt": "t"},
        {"salt": ""},
        {"fingerprint": fingerprint, "tokens": tokens, "salt": "t"},
        {"older_than_seconds": 60},
        {"all": True, "tiers": ["disk"]},
    ):
        status, answer = await node.post("/v1/clear", body)
        assert (status, answer["tier_shards"]) == (200, {"disk": 0})
    assert node.core.cleared == [
        (None, tenant_of("t", SECRET), b"", 0, ()),
        (None, 0, b"", 0, ()),
        (FINGERPRINT, tenant_of("t", SECRET), keys, 0, ()),
        (None, None, b"", 60_000, ()),
        (None, None, b"", 0, ("disk",)),
    ]
    assert node.index.told == []  # a part is told chunk by chunk


async def test_clearing_by_age_says_what_it_can_not_reach(serve: Serve) -> None:
    """A tier keeps no age: the answer says so, and a clear by age that leaves memory out is refused."""
    node = await serve()
    node.core.known_tiers = [("disk", "serving", "", {})]
    _, answer = await node.post("/v1/clear", {"older_than_seconds": 60})
    assert "no age is known" in answer["limits"][0]
    status, answer = await node.post("/v1/clear", {"older_than_seconds": 60, "tiers": ["disk"]})
    assert (status, answer["error"]["field"]) == (409, "tiers")


async def test_a_text_shorter_than_a_chunk_clears_nothing(serve: Serve) -> None:
    """No whole chunk means no chunk: it must not be taken for any."""
    node = await serve()
    node.core.emit(committed(1))
    _, answer = await node.post("/v1/clear", {"fingerprint": FINGERPRINT.hex(), "tokens": [1, 2]})
    assert (answer["chunks"], len(node.core.chunks), node.core.cleared) == (0, 1, [])


async def test_a_model_is_what_its_engines_call_it(serve: Serve) -> None:
    """Reports of engines say which model a fingerprint is of; one that nobody named is refused with those that are known."""
    node = await serve()
    node.core.emit(committed(1), feedback(json.dumps({"request_id": "r", "model": "qwen"})))
    node.pump.drain()
    assert (await node.get("/v1/stats"))[1]["fingerprints"][0]["models"] == ["qwen"]
    status, answer = await node.post("/v1/clear", {"model": "quen"})
    assert (status, "known: qwen" in answer["error"]["remedy"]) == (404, True)
    _, answer = await node.post("/v1/clear", {"model": "qwen"})
    assert (answer["chunks"], node.core.cleared[-1][0]) == (1, FINGERPRINT)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"fingerprint": "00" * 32, "model": "m"}, "at most one of 'fingerprint' and 'model'"),
        ({"keys": ["00" * 32]}, "want a 'fingerprint'"),
        ({"fingerprint": "00" * 32, "keys": ["00" * 32], "tokens": [1]}, "at most one of 'keys' and 'tokens'"),
        ({"all": True, "salt": "t"}, "exactly one of"),
        ({"all": True, "tiers": ["Disk!"]}, "not a name of letters"),
    ],
)
async def test_a_clear_that_could_mean_two_things_is_refused(serve: Serve, body: object, words: str) -> None:
    """What contradicts itself forgets nothing."""
    node = await serve()
    node.core.emit(committed(1))
    status, answer = await node.post("/v1/clear", body)
    assert (status, len(node.core.chunks)) == (400, 1)
    assert words in answer["error"]["message"]


async def test_an_unknown_tier_is_refused_with_those_that_there_are(serve: Serve) -> None:
    """A misspelt tier clears nothing."""
    node = await serve()
    status, answer = await node.post("/v1/clear", {"all": True, "tiers": ["dsik"]})
    assert (status, answer["error"]["remedy"], node.core.cleared) == (404, "known: memory", [])


def test_names_of_models_outlive_the_daemon_and_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was learnt is read by the next life; a damaged file costs the names only."""
    path = tmp_path / "models.json"
    names = ModelNames(path)
    for number in range(NAMES_PER_FINGERPRINT_MAX + 1):
        names.hear(FINGERPRINT, f"m{number}")
    names.hear(FINGERPRINT, "x" * 300)
    later = ModelNames(path)
    later.restore()
    assert later.of(FINGERPRINT) == [f"m{number}" for number in range(NAMES_PER_FINGERPRINT_MAX)]
    assert later.fingerprints("m0") == [FINGERPRINT]
    path.write_text("[1]")
    ModelNames(path).restore()
    assert "learnt anew" in caplog.text


def test_neither_a_salt_nor_a_text_reaches_the_audit_log() -> None:
    """Also within a call for all nodes; of lists only their length."""
    body = {"fingerprint": "00" * 32, "text": "secret words", "salt": "secret salt"}
    pin = PinRequest.model_validate(body)
    spread = ClusterRequest(operation="pin", body={**body, "keys": ["a", "b"]})
    assert "secret" not in f"{summary(pin)} {summary(spread)}"
    assert summary(spread)["body"] == {"fingerprint": "00" * 32, "keys": 2}
