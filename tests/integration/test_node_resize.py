"""A node that is given another size while engines use it: what fits is served on, and nobody has to begin anew by hand."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from node_clients import SLOT_BYTES, connect, keys_of, payload, post, read, store
from node_process import NodeProcess, node_in, until

MIB = 1 << 20
CHUNKS = 200


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    with TemporaryDirectory(prefix="kvn-") as folder, node_in(Path(folder)) as made:
        yield made


def arena_bytes(node: NodeProcess) -> int:
    """0 while it begins anew."""
    try:
        return int(node.stats()["core"].get("arena_bytes", 0))
    except (urllib.error.URLError, ConnectionError):
        return 0


def resize(node: NodeProcess, size: int) -> dict[str, Any]:
    answer = post(node, "/v1/resize", {"arena_bytes": size})
    until(lambda: arena_bytes(node) == size, node.log())
    return answer


def refusal(node: NodeProcess, size: int) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(node, "/v1/resize", {"arena_bytes": size})
    with refused.value as answer:
        assert answer.code == 409
        return dict(json.loads(answer.read())["error"])


def test_a_node_grows_and_shrinks_and_its_engines_go_on_with_what_fits(node: NodeProcess) -> None:
    """The same process has the new size, attached clients come back by themselves, and read the same bytes; of a smaller arena the beginning."""
    node.start()
    assert node.process is not None
    scheduler, worker = connect(node, "scheduler"), connect(node, "worker")
    keys, stored = keys_of(worker, CHUNKS), [payload(number) for number in range(CHUNKS)]
    store(worker, keys, stored)
    answer = resize(node, 48 * MIB)
    assert answer == {"before_bytes": 16 * MIB, "arena_bytes": 48 * MIB, "restarts": True}
    assert node.process.poll() is None
    until(lambda: scheduler.ensure_connected() and worker.ensure_connected(), scheduler.last_error)
    assert read(scheduler, worker, keys) == stored
    assert node.stats()["adopted"] is True
    small = MIB
    resize(node, small)
    until(lambda: scheduler.ensure_connected() and worker.ensure_connected(), scheduler.last_error)
    left = read(scheduler, worker, keys)
    assert 0 < len(left) <= small // SLOT_BYTES
    assert left == stored[: len(left)]
    assert "for the others there was no room" in node.log() or len(left) == CHUNKS
    assert len(node.holders()) == 1
    scheduler.close()
    worker.close()


def test_a_size_that_was_asked_for_outlives_kill_9_and_ends_with_another_configuration(node: NodeProcess) -> None:
    """A crash is no reason to forget the size; who configures another one is obeyed, and what fits is moved again."""
    node.start()
    scheduler, worker = connect(node, "scheduler"), connect(node, "worker")
    keys, stored = keys_of(worker, 3), [payload(number) for number in range(3)]
    store(worker, keys, stored)
    resize(node, 32 * MIB)
    node.kill()
    node.start()
    assert arena_bytes(node) == 32 * MIB
    node.kill()
    node.start("--arena-bytes", "24MiB")
    assert arena_bytes(node) == 24 * MIB
    until(lambda: scheduler.ensure_connected() and worker.ensure_connected(), scheduler.last_error)
    assert read(scheduler, worker, keys) == stored
    scheduler.close()
    worker.close()


def test_what_would_cost_the_content_or_is_not_possible_is_refused(node: NodeProcess) -> None:
    """A size that the machine does not have, and a node without a holder: nothing happens, and the answer says what to do."""
    node.start()
    assert refusal(node, 1 << 43)["remedy"] == "ask for less, or give it more memory first"
    assert post(node, "/v1/resize", {"arena_bytes": 16 * MIB})["restarts"] is False
    assert arena_bytes(node) == 16 * MIB
    node.stop()
    node.start("--holder-socket", "none")
    assert "holder_socket" in refusal(node, 32 * MIB)["remedy"]


def test_a_stop_that_comes_while_it_begins_anew_is_a_stop(node: NodeProcess) -> None:
    """Whoever ends a node that is about to begin anew sees it end, with its holder."""
    node.start()
    post(node, "/v1/resize", {"arena_bytes": 32 * MIB})
    assert node.stop() in (0, -15)
    until(lambda: not node.holders(), "the holder ends")
