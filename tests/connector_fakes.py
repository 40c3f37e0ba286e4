"""A cache node and a native transfer in plain Python, spoken to as the connector speaks to the native ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kvcommons_core.limits import KEY_BYTES

SECRET = bytes(range(32))


class FakeNode:
    """Holds keys; leases are counted, so that a test can see one that leaks."""

    def __init__(self) -> None:
        self.present: set[bytes] = set()
        self.pending: set[bytes] = set()
        self.leases: dict[int, int] = {}
        self.feedbacks: list[dict[str, Any]] = []
        self.lookups = 0
        self.up = True
        self.multi_tenant = False
        self.has_tiers = False
        self.attach_count = 1
        self.status = "ok"
        self._lease = 100

    @property
    def namespace_secret(self) -> bytes:
        """As HELLO gives it."""
        return SECRET

    @property
    def fingerprint(self) -> bytes:
        """As the client declared it."""
        return b""

    def ensure_connected(self) -> bool:
        """True while the node is up."""
        return self.up

    def restart(self) -> None:
        """The node comes back: leases of the former life are void."""
        self.up, self.attach_count = True, self.attach_count + 1
        self.leases.clear()

    def lookup(self, keys: bytes, tenant: int = 0, lease: bool = False) -> tuple[str, int, int, int]:
        """Leading keys that are present."""
        self.lookups += 1
        if self.status != "ok":
            return self.status, 0, 0, 0
        chunks = [keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES)]
        hit = next((i for i, key in enumerate(chunks) if key not in self.present), len(chunks))
        pending = next((i for i, key in enumerate(chunks[hit:]) if key not in self.pending), len(chunks) - hit)
        if not hit or not lease:
            return "ok", 0, hit, pending
        self._lease += 1
        self.leases[self._lease] = hit
        return "ok", self._lease, hit, pending

    def release(self, lease: int) -> str:
        """The lease must have been given and not have ended."""
        return "ok" if self.leases.pop(lease, None) is not None else "gone"

    def feedback(self, json: str) -> str:
        """Kept for the test to read."""
        self.feedbacks.append(_parsed(json))
        return "ok"

    def store(self, keys: bytes) -> None:
        """Put keys in, as a worker's commit would."""
        self.present |= {keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES)}


def _parsed(text: str) -> dict[str, Any]:
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


class FakeTransfer:
    """Records what is submitted; the test decides how it ends."""

    def __init__(self) -> None:
        self.load_status: dict[int, str] = {}
        self.end_status: dict[int, str] = {}
        self.layer_status = "ok"
        self.loaded: list[int] = []
        self.loaded_whole: list[int] = []
        self.stored: list[int] = []
        self.waited_stores: list[int] = []
        self.waited_layers: list[int] = []
        self.finished_loads: list[tuple[int, str, int, int]] = []
        self.finished_stores: list[tuple[int, str, int, int]] = []
        self.store_status = "ok"

    def load(self, job: int, lease: int, first_block: int, block_ids: object, whole: bool = False) -> str:
        """Refused if the test says so."""
        status = self.load_status.get(job, "ok")
        if status == "ok":
            self.loaded.append(job)
            self.loaded_whole.extend([job] if whole else [])
        return status

    def wait_layer(self, layer: int, ms_max: int) -> str:
        """As the test says."""
        self.waited_layers.append(layer)
        return self.layer_status

    def wait_load(self, job: int, ms_max: int) -> str:
        """How the load has ended."""
        return self.end_status.get(job, "ok")

    def store(
        self,
        job: int,
        tenant: int,
        parent: bytes,
        keys: bytes,
        block_ids: object,
        text_keys: Sequence[Sequence[int]] = (),
        hints: int = 0,
    ) -> str:
        """Accepted, unless the queue is full."""
        if self.store_status == "ok":
            self.stored.append(job)
        return self.store_status

    def wait_stores(self, jobs: Sequence[int]) -> None:
        """Recorded."""
        self.waited_stores.extend(jobs)

    def take_finished_loads(self) -> list[tuple[int, str, int, int]]:
        """Each once."""
        taken, self.finished_loads = self.finished_loads, []
        return taken

    def take_finished_stores(self) -> list[tuple[int, str, int, int]]:
        """Each once."""
        taken, self.finished_stores = self.finished_stores, []
        return taken

    def stats(self) -> dict[str, int]:
        """Nothing is copied here."""
        return {}


class FakeSession:
    """A worker's session that is there."""

    attach_count = 1

    def ensure_connected(self) -> bool:
        """Always."""
        return True
