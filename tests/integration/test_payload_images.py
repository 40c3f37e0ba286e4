"""The payload in images that know nothing of it: read-only, not root, another Python and another glibc than the build's."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import payload_support
import pytest
import stand_in
from kvcommons_core import _native
from kvcommons_node import payload
from stand_in import StandIn

pytestmark = [
    pytest.mark.timeout(payload_support.BUILD_SECONDS_MAX + 2 * stand_in.BOOTSTRAP_SECONDS_MAX),
    pytest.mark.skipif(bool(stand_in.obstacle()), reason=stand_in.obstacle() or "possible here"),
]
PAYLOAD, RUN = "/kvcommons", "/run/kvcommons"
LAUNCH = ("python3", f"{PAYLOAD}/launch.py")
OURS = json.dumps({"kv_connector": "KVCommonsConnector", "kv_connector_module_path": "kvcommons_connector.vllm"})
# What the connector does with a node: a worker stores a chunk, a scheduler finds it, a worker reads it.
USE_NODE = f"""
import json, os, sys
from kvcommons_core import _native
from kvcommons_connector.config import parse_config
common = dict(socket_path="{RUN}/n", fingerprint=bytes(32), chunk_tokens=256, shards=[((0, 2, 0, 4), 8192)])
worker = _native.Client(role="worker", own_shard=0, **common)
scheduler = _native.Client(role="scheduler", **common)
assert worker.ensure_connected(), worker.last_error
key = _native.sha256(b"chunk")
worker.copy_started()
status, [(granted, offset, generation)] = worker.reserve(7, b"", key)
worker.write_arena(offset, b"K" * 8192)
assert worker.commit([(offset, generation, 0, (1,))]) == ("ok", 1)
worker.copy_finished()
status, lease, hits, pending = scheduler.lookup(key, 7, lease=True)
status, slots = worker.begin(lease)
read = worker.read_arena(slots[0][0], 8192)
print(json.dumps([hits, read == b"K" * 8192, os.getuid(), sys.version_info[1], _native.__file__]))
"""


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """The payload as the init container leaves it."""
    target = tmp_path / "volume"
    target.mkdir(mode=0o755)
    os.chmod(tmp_path, 0o755)
    payload.install(payload_support.payload(), target)
    return target


@pytest.fixture
def node() -> Iterator[Path]:
    """The folder of a real node's socket; another group than ours is let in."""
    with tempfile.TemporaryDirectory(prefix="kvc-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        core = _native.NodeCore(
            socket_path=f"{name}/n",
            arena_bytes=16 << 20,
            node_id="node",
            namespace_secret=b"s" * 32,
            allowed_gids=[stand_in.GROUP],
            socket_mode=0o666,
        )
        core.start()
        yield Path(name)
        core.stop()


def checked(image: StandIn, volume: Path) -> dict[str, Any]:
    done = image.run(*LAUNCH, "--check", volumes={volume: PAYLOAD})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_connector_loads_and_works_in_a_newer_image(volume: Path, node: Path) -> None:
    """Python 3.13 and glibc 2.41: the stable build loads, attaches to a node, stores, finds and reads a chunk."""
    image = stand_in.of("trixie", (PAYLOAD, RUN))
    found = checked(image, volume)
    assert (found["loaded"], found["reason"]) == (True, "Loaded")
    assert found["glibc"] == "2.41"
    command = (*LAUNCH, "--", "python3", "-c", USE_NODE)
    done = image.run(*command, volumes={volume: PAYLOAD, node: RUN})
    assert done.returncode == 0, done.stderr
    hits, same, user, minor, module = json.loads(done.stdout)
    assert (hits, same, user, minor) == (1, True, stand_in.USER, 13)
    assert module == f"{PAYLOAD}/python/kvcommons_core/_native.abi3.so"


def test_the_image_can_not_be_written(volume: Path) -> None:
    """The stand-in is what its name says: no file of it can be made, and the user is not root."""
    image = stand_in.of("trixie", (PAYLOAD, RUN))
    done = image.run("python3", "-c", "open('/var/tmp/new', 'w')", volumes={volume: PAYLOAD})
    assert "Read-only file system" in done.stderr
    assert image.run("id", "-u", volumes={}).stdout.strip() == str(stand_in.USER)


def test_an_image_that_is_too_old_serves_without_and_says_why(volume: Path) -> None:
    """Python 3.9 and glibc 2.31: the check names the glibc that is missing, and the engine starts without the connector."""
    image = stand_in.of("bullseye", (PAYLOAD, RUN))
    found = checked(image, volume)
    assert (found["loaded"], found["reason"]) == (False, "GlibcTooOld")
    assert "glibc here is 2.31 and the payload needs 2.34" in found["message"]
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('PYTHONPATH')]))"
    words = ("--model", "m", "--kv-transfer-config", OURS)
    done = image.run(*LAUNCH, "--", "python3", "-c", show, *words, volumes={volume: PAYLOAD})
    assert json.loads(done.stdout) == [["--model", "m"], None]
    assert "serving WITHOUT the commons, because GlibcTooOld" in done.stderr
