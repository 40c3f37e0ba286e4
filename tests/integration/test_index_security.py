"""The index over TLS and under an ACL that allows it its own keys and commands and nothing else."""

import ssl
import subprocess
from pathlib import Path

import pytest
from index_support import FakeStore, RawClient, Switch, engine, node, until
from kvcommons_core import redis_server
from kvcommons_core.index import EngineRecorder, IndexConnection, IndexReader, NodeIndex, text_key8
from kvcommons_core.redis_server import RedisServer, ServerBinary
from kvcommons_core.settings import IndexSettings

# What docs/index.md tells an administrator to allow.
ACL = (
    "on >s3cret ~kvc:test:* resetchannels &kvc:test:* -@all +get +set +mget +del +pexpire +hget +hset +hsetnx +hdel +hincrby +hmget "
    "+hgetall +hrandfield +eval +evalsha +script|load +info +ping +publish +subscribe +unsubscribe +select"
)


async def works(settings: IndexSettings) -> None:
    """One node, one engine, one lookup that finds both."""
    index = NodeIndex(settings, node("n1"), FakeStore(2).inventory)
    reader = IndexReader(settings)
    recorder = EngineRecorder(settings, reader)
    await index.start()
    await reader.start()
    await recorder.start()
    recorder.add(engine("e1"))
    await until(lambda: recorder.slot_of("e1") and len(reader.view.by_name) == 2, "both are members")
    keys = [text_key8(10_000), text_key8(10_001)]
    recorder.record("e1", keys)
    recorder.confirm(keys)

    async def both() -> bool:
        return len((await reader.lookup(keys)).hits) == 2

    await until(both, "both are found")
    long = await reader.lookup([*keys, *(text_key8(n) for n in range(100))])
    assert len(long.hits) == 2
    index.tell("{}")
    await index.stream.flushed()
    assert not index.last_error
    assert not recorder.keeper.last_error
    assert not reader.view.last_error
    await recorder.remove("e1", gone=True)
    await recorder.stop()
    await reader.stop()
    await index.stop()


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    return path


async def test_an_acl_of_its_own_keys_and_commands_is_enough(redis_binary: ServerBinary, passwords: Path) -> None:
    """Everything works for a user who may touch the pool's prefix alone, with the commands that the documentation lists."""
    with redis_server.running(redis_binary) as server, RawClient(server) as raw:
        raw("ACL", "SETUSER", "kvcommons", *ACL.split())
        raw("ACL", "SETUSER", "default", "off")
        await works(
            IndexSettings(
                url=server.url,
                prefix="kvc:test:",
                username="kvcommons",
                password_file=str(passwords),
                lookup_ms_max=2_000,
            )
        )


async def test_a_wrong_password_is_an_absent_index_that_says_why(redis_binary: ServerBinary, tmp_path: Path) -> None:
    """A node goes on without the index, and its error names the refusal and not the password."""
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-password")
    with redis_server.running(redis_binary, options=["--requirepass", "right"]) as server:
        settings = IndexSettings(url=server.url, prefix="kvc:test:", password_file=str(wrong))
        index = NodeIndex(settings, node("n1"), FakeStore().inventory)
        await index.start()
        await until(lambda: index.last_error, "the refusal shows")
        assert "not-the-password" not in index.last_error
        assert not index.joined
        await index.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority and a server's certificate for 127.0.0.1, good for a day."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "1",
        "-subj",
        "/CN=ca",
    )
    openssl(
        "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1"
    )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "server.pem", "-days", "1", "-extfile", "names"),
    )
    return folder


async def test_tls_with_a_private_authority(shared_redis: RedisServer, raw: RawClient, certificates: Path) -> None:
    """rediss:// with the authority's certificate works; without it the server is not believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    async with Switch(context) as front:
        front.lead_to(shared_redis)
        settings = IndexSettings(
            url=f"rediss://127.0.0.1:{front.port}/0",
            prefix="kvc:test:",
            tls_ca_file=str(certificates / "ca.pem"),
            lookup_ms_max=2_000,
        )
        await works(settings)
        doubting = IndexReader(settings.model_copy(update={"tls_ca_file": ""}))
        await doubting.start()
        assert not doubting.view.reachable
        assert "certificate" in doubting.view.last_error.lower()
        await doubting.stop()


def test_a_password_in_a_url_is_shown_nowhere() -> None:
    """The error of an unusable URL names the host and not the secret."""
    with pytest.raises(ValueError, match=r"\*\*\*@host") as caught:
        IndexConnection(IndexSettings(url="mysql://user:s3cret@host:1/0"))
    assert "s3cret" not in str(caught.value)
