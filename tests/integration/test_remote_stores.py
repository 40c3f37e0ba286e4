"""What the drivers of shared stores promise, over real servers: Redis, Valkey where there is one, and an S3-compatible one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kvcommons_core import redis_server
from kvcommons_core.errors import ConfigurationError
from kvcommons_core.settings_remote import RedisTier, S3Tier
from kvcommons_node.remote.driver import open_store
from kvcommons_node.remote.stores import Store, StoreAwayError, StoreError, StoreFullError, StoreRefusedError
from node_process import until
from s3_server import BUCKET, S3Server, s3_running

TTL_MS = 60_000
GIB = 1 << 30
FLAVOURS = sorted({binary.flavour for binary in redis_server.find_server()})


def redis_tier(url: str, **more: Any) -> RedisTier:
    return RedisTier.model_validate({"type": "redis", "url": url, "capacity_bytes": GIB, "time_out_ms": 2_000} | more)


def s3_tier(server: S3Server, folder: Path, **more: Any) -> S3Tier:
    (folder / "id").write_text("an-id\n")
    (folder / "key").write_text("a-secret-key\n")
    keys = {"access_key_id_file": str(folder / "id"), "secret_access_key_file": str(folder / "key")}
    values = {"type": "s3", "bucket": BUCKET, "endpoint": server.endpoint, "capacity_bytes": GIB, "time_out_ms": 5_000}
    return S3Tier.model_validate(values | keys | more)


@pytest.fixture(params=[*FLAVOURS, "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with ExitStack() as stack:
        if request.param == "s3":
            opened = open_store(s3_tier(stack.enter_context(s3_running(tmp_path)), tmp_path))
        else:
            binary = next(one for one in redis_server.find_server() if one.flavour == request.param)
            opened = open_store(redis_tier(stack.enter_context(redis_server.running(binary)).url))
        stack.callback(opened.close)
        yield opened


def test_an_object_comes_back_byte_for_byte_until_it_is_removed(store: Store) -> None:
    """What is there already with that size is not written again; sizes of many are asked for at once; what is not there is no fault."""
    big = bytes(range(256)) * 20_000
    store.ping()
    assert store.get("kvc/a/1/x") is None
    assert store.put("kvc/a/1/x", big, TTL_MS)
    assert not store.put("kvc/a/1/x", big, TTL_MS)
    assert store.put("kvc/a/1/x", big[1:], TTL_MS)
    assert bytes(store.get("kvc/a/1/x") or b"") == big[1:]
    assert store.put("kvc/a/2/x", b"short", TTL_MS)
    assert store.sizes(["kvc/a/1/x", "kvc/none", "kvc/a/2/x"]) == [len(big) - 1, 0, 5]
    store.remove(["kvc/a/1/x", "kvc/none"])
    assert store.sizes(["kvc/a/1/x", "kvc/a/2/x"]) == [0, 5]


def test_a_clear_takes_what_begins_with_the_prefix_and_nothing_else(store: Store) -> None:
    """Other fingerprints and other pools share the store."""
    names = [f"kvc/{fingerprint}/{number:04}/x" for fingerprint in ("aa", "ab") for number in range(30)]
    for name in [*names, "other/aa/1/x"]:
        store.put(name, b"content", TTL_MS)
    store.clear("kvc/aa/", 20.0)
    assert [size > 0 for size in store.sizes(names)] == [False] * 30 + [True] * 30
    assert store.sizes(["other/aa/1/x"]) == [7]


def test_redis_forgets_by_its_own_clock_and_says_when_it_is_full() -> None:
    """The ttl is the key's; a server that may hold no more is full, and is read all the same."""
    with redis_server.running(options=["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]) as server:
        store = open_store(redis_tier(server.url))
        store.put("kvc/a", b"here", 40)
        store.put("kvc/b", b"here", TTL_MS)
        with pytest.raises(StoreFullError, match="maxmemory"):
            fill(store)
        assert store.get("kvc/b") == b"here"
        until(lambda: store.get("kvc/a") is None, "the ttl is over")
        store.close()


def fill(store: Store) -> None:
    for number in range(40):
        store.put(f"kvc/{number}", bytes(100_000), TTL_MS)


def test_credentials_come_from_files_and_are_shown_nowhere(tmp_path: Path) -> None:
    """The right password is taken from its file or from the file with the URL; with a wrong one the message has neither."""
    with redis_server.running(options=["--requirepass", "open-sesame"]) as server:
        (tmp_path / "right").write_text("open-sesame\n")
        (tmp_path / "wrong").write_text("hush-hush\n")
        (tmp_path / "url").write_text(f"redis://:open-sesame@127.0.0.1:{server.port}/0\n")
        open_store(redis_tier(server.url, password_file=str(tmp_path / "right"))).ping()
        open_store(redis_tier("", url_file=str(tmp_path / "url"))).ping()
        for tier in (redis_tier(server.url, password_file=str(tmp_path / "wrong")), redis_tier(server.url)):
            with pytest.raises(StoreError) as refused:
                open_store(tier).ping()
            assert "hush" not in str(refused.value)
            assert "sesame" not in str(refused.value)
        with pytest.raises(ConfigurationError, match=r"password_file: .*nowhere"):
            open_store(redis_tier(server.url, password_file=str(tmp_path / "nowhere")))
        (tmp_path / "url").write_text("http://:hush-hush@x")
        with pytest.raises(ConfigurationError) as unread:
            open_store(redis_tier("", url_file=str(tmp_path / "url")))
        assert "hush" not in str(unread.value)


def test_a_store_that_is_not_there_is_away_and_one_that_refuses_is_not(tmp_path: Path) -> None:
    """Nobody listens: away at once. An answer that says no: refused, with what the store said."""
    port = redis_server.free_port()
    with pytest.raises(StoreAwayError, match=str(port)):
        open_store(redis_tier(f"redis://127.0.0.1:{port}/0")).ping()
    with s3_running(tmp_path) as server:
        missing = open_store(s3_tier(server, tmp_path, bucket="no-such-bucket"))
        with pytest.raises(StoreRefusedError, match="no-such-bucket: there is no such bucket"):
            missing.put("kvc/a", b"x", TTL_MS)
        here = open_store(s3_tier(server, tmp_path))
        here.put("kvc/a", b"x", TTL_MS)
        server.kill()
        with pytest.raises(StoreAwayError, match=BUCKET) as away:
            here.get("kvc/a")
        assert "a-secret-key" not in str(away.value)
    with redis_server.running() as redis:
        refusing = open_store(redis_tier(redis.url))
        _push_list(redis.url)
        with pytest.raises(StoreRefusedError, match=r"wrong kind|WRONGTYPE"):
            refusing.get("kvc/list")


def _push_list(url: str) -> None:
    import redis

    client: Any = redis.Redis.from_url(url)
    client.lpush("kvc/list", "x")
    client.close()


class OnePort:
    """A core that wants one thing done."""

    name, lanes, closed = "store", 1, False

    def __init__(self, wanted: bytes | None = b"object") -> None:
        self.wanted = wanted
        self.told: list[tuple[int, str, str]] = []

    def take(self, lane: int, wait_ms: int) -> None:
        return None

    def object(self, id: int, bytes: int) -> bytes | None:
        return self.wanted

    def done(self, id: int, outcome: str, content: Any = None, sizes: Any = (), why: str = "") -> None:
        self.told.append((id, outcome, why))


def test_every_job_is_answered_once_whatever_the_store_does() -> None:
    """Each kind of refusal has its word, and a defect of the driver is an answer too before it shows."""
    from kvcommons_node.remote.driver import carry_out

    def refusing(error: Exception) -> Any:
        class Refusing:
            def __getattr__(self, name: str) -> Callable[..., None]:
                def refuse(*arguments: object) -> None:
                    raise error

                return refuse

        return Refusing()

    for error, word in (
        (StoreAwayError("a"), "unreachable"),
        (StoreFullError("a"), "full"),
        (StoreRefusedError("a"), "failed"),
    ):
        for op in ("put", "get", "ask", "remove", "clear", "ping"):
            port = OnePort()
            carry_out(port, refusing(error), (7, op, ["n"], 6, 1, 1))
            assert port.told == [(7, word, "a")]
    port = OnePort()
    with pytest.raises(ZeroDivisionError):
        carry_out(port, refusing(ZeroDivisionError()), (8, "get", ["n"], 6, 1, 1))
    assert [told[:2] for told in port.told] == [(8, "failed")]
    unwanted = OnePort(None)
    carry_out(unwanted, refusing(StoreAwayError("a")), (9, "put", ["n"], 6, 1, 1))
    assert unwanted.told == [(9, "ok", "")]
