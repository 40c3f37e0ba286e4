"""Who asks: API keys, tenants, salts that nobody can forge, and texts that two tenants never share."""

import hashlib
import json
from pathlib import Path

import pytest
from kvcommons_core import textkeys
from kvcommons_core.settings import IndexSettings
from kvcommons_router.auth import KeysError, read_keys, read_or_make_secret, read_secret, salt_of
from router_support import Reply, chat, engines_of, index_of, on_uvloop, running, settings_for, until

SECRET = "s" * 32
TEXT = "the same long document " * 400


def write_keys(folder: Path, *entries: dict[str, object]) -> Path:
    """A file of API keys."""
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": list(entries)}))
    return path


def bearer(key: str) -> dict[str, str]:
    """The header of an API key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The file of the router's secret."""
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return path


@on_uvloop
async def test_tenants_get_salts_of_their_own(tmp_path: Path, secret: Path) -> None:
    """Two keys of one tenant share its salt and its text keys; another tenant's are others; forged ones are dropped."""
    hashed = hashlib.sha256(b"key-of-b-1").hexdigest()
    keys = write_keys(
        tmp_path,
        {"tenant": "a", "key": "key-of-a-1"},
        {"tenant": "a", "key": "key-of-a-2"},
        {"tenant": "b", "sha256": hashed},
    )
    async with engines_of("e") as engines:
        async with running(settings_for(engines, api_keys=keys, salt_secret=secret)) as router:
            forged = {"cache_salt": salt_of(SECRET.encode(), "b"), "kv_transfer_params": {"kvcommons": {"v": 1}}}
            for key in ("key-of-a-1", "key-of-a-2", "key-of-b-1"):
                assert (await router.ask(chat(TEXT, **forged), headers=bearer(key))).status == 200
        one, two, other = [call.json for call in engines[0].calls]
        assert one["cache_salt"] == two["cache_salt"] == salt_of(SECRET.encode(), "a")
        assert other["cache_salt"] == salt_of(SECRET.encode(), "b") != one["cache_salt"]
        keys_of = [body["kv_transfer_params"]["kvcommons"]["text_keys"] for body in (one, two, other)]
        assert keys_of[0] == keys_of[1]
        assert len(keys_of[0]) == 4
        assert not set(keys_of[0]) & set(keys_of[2])
        assert all("authorization" not in call.headers for call in engines[0].calls)


@on_uvloop
async def test_a_tenant_has_so_many_requests_a_minute(tmp_path: Path, secret: Path) -> None:
    """The one too many is told when to come again, and reaches no engine; another tenant notices nothing."""
    keys = write_keys(
        tmp_path, {"tenant": "a", "key": "key-of-a", "requests_per_minute": 2}, {"tenant": "b", "key": "key-of-b"}
    )
    async with engines_of("e") as engines:
        async with running(settings_for(engines, api_keys=keys, salt_secret=secret)) as router:
            client = await router.client()
            replies = [await client.ask(chat(), headers=bearer("key-of-a")) for _ in range(3)]
            assert [reply.status for reply in replies] == [200, 200, 429]
            assert 1 <= int(replies[2].header("retry-after") or 0) <= 30
            assert replies[2].error["code"] == "rate_limit_exceeded"
            assert (await client.ask(chat(), headers=bearer("key-of-b"))).status == 200
            assert router.count("refusals_total", limit="tenant_minute") == 1
            assert router.app.budgets.requests == 0
            assert router.app.budgets.body_bytes == 0
        assert len(engines[0].calls) == 3


@on_uvloop
async def test_text_keys_are_the_documented_ones(tmp_path: Path) -> None:
    """What goes to the connector is the chain over the canonical text, and that text's length."""
    async with engines_of("e") as engines, running(settings_for(engines)) as router:
        body = chat(TEXT)
        await router.ask(body)
        sent = engines[0].calls[0].json
        assert "cache_salt" not in sent
        expected = textkeys.text_keys(body, textkeys.text_seed("m", "", "default", ""))
        assert sent["kv_transfer_params"]["kvcommons"]["text_keys"] == [f"{key:016x}" for key in expected.keys]
        assert sent["kv_transfer_params"]["kvcommons"]["text_bytes"] == expected.total_bytes


@pytest.mark.parametrize(
    "headers", [{}, bearer("nobody's key"), {"Authorization": "Basic key-of-a-1"}, {"Authorization": "Bearer"}]
)
@on_uvloop
async def test_a_key_is_needed(tmp_path: Path, secret: Path, headers: dict[str, str]) -> None:
    """401 in OpenAI's shape for no key and for a wrong one, before the body is read; nothing reaches an engine."""
    keys = write_keys(tmp_path, {"tenant": "a", "key": "key-of-a-1"})
    async with engines_of("e") as engines:
        async with running(settings_for(engines, api_keys=keys, salt_secret=secret)) as router:
            client = await router.client()
            reply = await client.ask(chat(), headers=headers)
            assert reply.status == 401
            assert reply.error["code"] == "invalid_api_key"
            assert (reply.header("www-authenticate") or "").startswith("Bearer")
            assert (await client.ask(b"", path="/v1/models", method="GET", headers=headers)).status == 401
            assert (await client.ask(b"", path="/health", method="GET", headers=headers)).status == 503
            assert (await client.ask(chat(), headers=bearer("key-of-a-1"))).status == 200
        assert len(engines[0].calls) == 1


@on_uvloop
async def test_changed_keys_are_read_again_and_broken_ones_are_not(tmp_path: Path, secret: Path) -> None:
    """A new key works within seconds and a removed one stops, on open connections too; a broken file changes nothing."""
    keys = write_keys(tmp_path, {"tenant": "a", "key": "key-of-a-1"})
    async with (
        engines_of("e") as engines,
        running(settings_for(engines, api_keys=keys, salt_secret=secret)) as router,
    ):
        client = await router.client()
        assert (await client.ask(chat(), headers=bearer("key-of-a-1"))).status == 200
        keys.write_text("{broken")
        await until(lambda: router.count("key_reloads_total", outcome="failed") == 1, "the broken file")
        assert (await client.ask(chat(), headers=bearer("key-of-a-1"))).status == 200
        write_keys(tmp_path, {"tenant": "b", "key": "key-of-b-1"})
        await until(lambda: router.count("key_reloads_total", outcome="ok") == 1, "the new file")
        assert (await client.ask(chat(), headers=bearer("key-of-b-1"))).status == 200
        assert (await client.ask(chat(), headers=bearer("key-of-a-1"))).status == 401


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not JSON"),
        ('{"keys":[{"tenant":"a"}]}', "exactly one"),
        ('{"keys":[{"tenant":"a","key":"short"}]}', "at least 8"),
        ('{"keys":[{"tenant":"a","sha256":"xyz"}]}', "sha256"),
        ('{"keys":[{"tenant":"a","key":"12345678"},{"tenant":"b","key":"12345678"}]}', "two tenants"),
        ('{"keys":[{"tenant":"a","key":"12345678","salt":"x"}]}', "salt"),
    ],
)
def test_a_keys_file_that_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    """The message says which entry is wrong and never shows a key."""
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(KeysError, match=words) as caught:
        read_keys(path, SECRET.encode())
    assert "12345678" not in str(caught.value)


def test_the_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    """Salts must outlive a restart: the second start reads what the first one made, which only its owner may read."""
    path = tmp_path / "state" / "salt.secret"
    made = read_or_make_secret(path)
    assert read_or_make_secret(path) == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["salt.secret"]
    path.write_text("short")
    with pytest.raises(KeysError, match="at least 16"):
        read_secret(path)
    with pytest.raises(KeysError, match="can't be read"):
        read_secret(tmp_path / "absent")


def test_a_tenant_has_one_weight(tmp_path: Path) -> None:
    """A tenant's share of the queue is in its entries, 1 unless one is given; two that differ are an error that names it."""
    keys = write_keys(tmp_path, {"tenant": "a", "key": "key-of-a-1"})
    (tenant,) = read_keys(keys, SECRET.encode()).values()
    assert tenant.weight == 1.0
    entries = [{"tenant": "a", "key": f"key-of-a-{number}", "weight": weight} for number, weight in enumerate((2, 3))]
    keys.write_text(json.dumps({"keys": entries[:1]}))
    (tenant,) = read_keys(keys, SECRET.encode()).values()
    assert tenant.weight == 2.0
    keys.write_text(json.dumps({"keys": entries}))
    with pytest.raises(KeysError, match="a has two weights"):
        read_keys(keys, SECRET.encode())


@on_uvloop
async def test_who_runs_the_pool_learns_that_another_tenant_sent_the_text(tmp_path: Path, secret: Path) -> None:
    """The engine is told, for the node; the client is not, and what a tenant sends again is its own."""
    keys = write_keys(tmp_path, {"tenant": "a", "key": "key-of-a-1"}, {"tenant": "b", "key": "key-of-b-1"})
    async with engines_of("e") as engines:
        async with running(settings_for(engines, api_keys=keys, salt_secret=secret)) as router:
            for key in ("key-of-a-1", "key-of-a-1", "key-of-b-1", "key-of-b-1"):
                reply = await router.ask(chat(TEXT), headers=bearer(key))
                assert b"tenant" not in reply.body
        told = [call.json["kv_transfer_params"]["kvcommons"].get("other_tenant", False) for call in engines[0].calls]
        assert told == [False, False, True, False]


@on_uvloop
async def test_a_request_is_told_about_to_the_tenant_that_sent_it_alone(
    tmp_path: Path, secret: Path, index_settings: IndexSettings
) -> None:
    """What was expected of it, as soon as it was sent; to others it is as if it had never been."""
    keys = write_keys(tmp_path, {"tenant": "a", "key": "key-of-a-1"}, {"tenant": "b", "key": "key-of-b-1"})
    async with engines_of("e") as engines:
        settings = settings_for(engines, index=index_settings, api_keys=keys, salt_secret=secret)
        async with running(settings) as router:
            sent = await router.ask(chat(TEXT), headers=bearer("key-of-a-1"))
            path = f"/kvcommons/v1/requests/{sent.header('x-request-id')}"

            async def told(**more: dict[str, str]) -> tuple[int, object]:
                reply = await router.ask(b"", path=path, method="GET", **more)
                return reply.status, reply.json.get("replica")

            assert await told(headers=bearer("key-of-a-1")) == (200, "e")
            assert await told(headers=bearer("key-of-b-1")) == (404, None)
            assert await told() == (401, None)


@on_uvloop
async def test_the_page_is_open_and_what_it_shows_takes_a_key(
    tmp_path: Path, secret: Path, index_settings: IndexSettings
) -> None:
    """Its files hold no data; the pool is for those with a key, and of the last requests each tenant sees its own."""
    keys = write_keys(tmp_path, {"tenant": "a", "key": "key-of-a-1"}, {"tenant": "b", "key": "key-of-b-1"})
    async with engines_of("e") as engines:
        settings = settings_for(engines, index=index_settings, api_keys=keys, salt_secret=secret)
        async with running(settings) as router:
            client = await router.client()

            async def page(path: str, **more: dict[str, str]) -> Reply:
                return await client.ask(b"", path=path, method="GET", **more)

            for path, kind in (("/ui", "text/html"), ("/ui/app.js", "text/javascript"), ("/ui/style.css", "text/css")):
                file = await page(path)
                assert (file.status, (file.header("content-type") or "").partition(";")[0]) == (200, kind)
            assert (await page("/ui/nothing")).status == 404
            sent = await client.ask(chat(TEXT), headers=bearer("key-of-a-1"))
            request_id = sent.header("x-request-id") or ""
            expectations = index_of(router).expectations
            report = {"request_id": request_id, "prompt_tokens": 1000, "own_tokens": 0, "commons_tokens": 512}
            expectations.take(json.dumps({**report, "reason": "partly_found"}).encode())
            for path in ("/kvcommons/v1/pool", "/kvcommons/v1/requests"):
                assert (await page(path)).status == 401
            pool = (await page("/kvcommons/v1/pool", headers=bearer("key-of-b-1"))).json
            assert [one["name"] for one in pool["replicas"]] == ["e"]
            assert pool["replicas"][0]["actual_tokens"] == {"own": 0, "commons": 512}
            assert pool["totals"]["prompt_tokens"] == 1000
            own = (await page("/kvcommons/v1/requests", headers=bearer("key-of-a-1"))).json["requests"]
            assert [(one["request_id"], one["reported"]["commons_tokens"]) for one in own] == [(request_id, 512)]
            assert own[0]["explanation"].startswith("the prefix was here up to a point")
            assert (await page("/kvcommons/v1/requests", headers=bearer("key-of-b-1"))).json["requests"] == []
