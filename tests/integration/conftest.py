"""Real index servers, emptied between tests, and short folders for sockets."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from index_support import RawClient
from kvcommons_core import redis_server
from kvcommons_core.redis_server import RedisServer, ServerBinary
from kvcommons_core.settings import IndexSettings

# Redis 6.2 and a Valkey come with the test environment and are what every change is tested on; what else the machine has on PATH is used
# where those are missing, and in tests/soak.
FOUND = redis_server.find_server()
BINARIES = [binary for binary in FOUND if binary.source != "PATH"] or FOUND


@pytest.fixture(scope="session", params=BINARIES, ids=lambda binary: f"{binary.flavour}-{binary.version}")
def redis_binary(request: Any) -> ServerBinary:
    """Each kind and version of server in turn."""
    binary: ServerBinary = request.param
    return binary


@pytest.fixture(scope="session")
def shared_redis(redis_binary: ServerBinary) -> Iterator[RedisServer]:
    """One server of a kind for all tests that leave it running."""
    with redis_server.running(redis_binary) as server:
        yield server


@pytest.fixture
def raw(shared_redis: RedisServer) -> Iterator[RawClient]:
    """A blocking client of the emptied shared server, to look behind the product's back."""
    with RawClient(shared_redis) as client:
        client("FLUSHALL")
        client("CONFIG", "RESETSTAT")
        yield client
        forbidden = [line for line in client("INFO", "commandstats").split("\n") if line.startswith(FORBIDDEN)]
        assert not forbidden, "the index never walks the keyspace"


@pytest.fixture
def index_settings(shared_redis: RedisServer) -> IndexSettings:
    """Settings that reach the shared server, patient enough for a busy machine."""
    return IndexSettings(url=shared_redis.url, prefix="kvc:test:", lookup_ms_max=2_000)


FORBIDDEN = tuple(f"cmdstat_{name}:" for name in ("keys", "scan", "hscan", "sscan", "zscan", "randomkey", "dbsize"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="kvc-", dir="/tmp") as name:
        yield Path(name)
