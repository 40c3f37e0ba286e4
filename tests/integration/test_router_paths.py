"""Paths that are passed on without text keys: /v1/responses, and what an engine knows and the router was told of."""

import json
from pathlib import Path

import pytest
from kvcommons_core.errors import ConfigurationError
from kvcommons_router.settings import load
from router_support import engines_of, on_uvloop, request, running, settings_for

KEYS = {"keys": [{"tenant": "a", "key": "key-of-a"}]}
SALT = "0123456789abcdef"


@on_uvloop
async def test_responses_go_on_unchanged_and_like_ones_meet() -> None:
    """The body arrives byte for byte; the same beginning finds the same engine; others are spread."""
    async with engines_of("a", "b", "c") as engines, running(settings_for(engines)) as router:
        raw = b'{"model":"m", "input":"once upon a time", "n": 12345678901234567890}'
        for _ in range(4):
            assert (await router.ask(raw, path="/v1/responses")).status == 200
        counts = [len(engine.calls) for engine in engines]
        assert sorted(counts) == [0, 0, 4]
        calls = [call for engine in engines for call in engine.calls]
        assert {call.body for call in calls} == {raw}
        assert calls[0].head.startswith(b"POST /v1/responses HTTP/1.1")
        for number in range(30):
            await router.ask({"model": "m", "input": f"text {number}"}, path="/v1/responses")
        assert all(engine.calls for engine in engines)
        assert (await router.ask(b"", path="/v1/responses", method="GET")).status == 405


@on_uvloop
async def test_named_paths_are_forwarded_and_no_others() -> None:
    """A path that was named goes to an engine with its query and method; any other is a 404 here, and the router's own stay its own."""
    paths = ("/v1/rerank", "/v1/audio/*", "/h*")
    async with engines_of("a") as engines, running(settings_for(engines, forward_paths=paths)) as router:
        rerank = {"model": "m", "query": "q", "documents": ["d"], "kv_transfer_params": {"x": 1}}
        assert (await router.ask(rerank, path="/v1/rerank?top=1")).status == 200
        call = engines[0].calls[0]
        assert call.head.startswith(b"POST /v1/rerank?top=1 HTTP/1.1")
        assert call.json == {"model": "m", "query": "q", "documents": ["d"]}
        form = b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\n\x00\xff\r\n--x--"
        assert (await router.ask(form, path="/v1/audio/transcriptions")).status == 200
        assert engines[0].calls[1].body == form
        assert (await router.ask(b"", path="/v1/audio/voices", method="GET")).status == 200
        assert engines[0].calls[2].head.startswith(b"GET /v1/audio/voices HTTP/1.1")
        for path in ("/v1/rerank/more", "/v2/rerank", "/v1/audio"):
            assert (await router.ask(rerank, path=path)).status == 404
        assert "models" in (await router.ask(b"", path="/health", method="GET")).json
        assert (await router.ask({"model": "no"}, path="/v1/rerank")).status == 404
        assert len(engines[0].calls) == 3


@on_uvloop
async def test_forwarded_paths_need_a_key_and_carry_the_salt(tmp_path: Path) -> None:
    """Nothing is forwarded for nobody, and a tenant's KV stays apart on these paths, too."""
    keys, secret = tmp_path / "keys.json", tmp_path / "salt"
    keys.write_text(json.dumps(KEYS))
    secret.write_text(SALT)
    async with (
        engines_of("a") as engines,
        running(settings_for(engines, api_keys=keys, salt_secret=secret, forward_paths=("/v1/rerank",))) as router,
    ):
        assert (await router.ask({"model": "m"}, path="/v1/rerank")).status == 401
        client = await router.client()
        for path in ("/v1/rerank", "/v1/responses"):
            await client.send(request({"model": "m"}, path=path, headers={"Authorization": "Bearer key-of-a"}))
            assert (await client.reply()).status == 200
            assert len(engines[0].calls[-1].json["cache_salt"]) == 64


@pytest.mark.parametrize("path", ["v1/rerank", "/v1/*/x", "/caf\u00e9"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    """The error names the setting and says how to write it."""
    with pytest.raises(ConfigurationError, match=r"forward_paths.*begin it with /"):
        load(None, {}, {"forward_paths": [path]}, {})
