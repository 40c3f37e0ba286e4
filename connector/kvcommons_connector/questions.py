"""Questions to the node: under which keys a request is known, what of it is there, and the leases that hold the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from kvcommons_core import keys as token_keys_of
from kvcommons_core import limits

from kvcommons_connector.stats import Counters
from kvcommons_connector.tracking import Answer, Geometry, NodeClient, Tracked

KEY: Final = limits.KEY_BYTES
NO_PARENT: Final = bytes(KEY)
MISS_MS: Final = 100  # how long a miss is believed before the node is asked again
PENDING_MS: Final = 5  # the same while chunks are on their way: an engine with nothing else to do asks all the time


class Questions:
    """One engine's questions. An answer, and its lease, belongs to one request until it is dropped or handed to the workers."""

    def __init__(
        self,
        geometry: Geometry,
        client: NodeClient,
        counters: Counters,
        now_ms: Callable[[], float],
        *,
        lease_ms_max: int,
        fetch_ms_max: int,
        on_late: Callable[[], None] | None,
    ) -> None:
        self._geometry, self._client, self._counters, self._now_ms = geometry, client, counters, now_ms
        self._lease_ms_max, self._fetch_ms_max = lease_ms_max, fetch_ms_max
        self._on_late = on_late
        self.generation = b""
        """Changes with what the keys can't see; nothing of another one is found."""

    def ready(self, request: Tracked) -> bool:
        """True if the request can be named and the node is there. Derives the namespace on first use."""
        if request.reason:
            return False
        if not self._client.ensure_connected():
            return False
        if not request.root:
            if self._client.multi_tenant and not request.identity.salt:
                request.reason = "unsalted"
                return False
            base = self._client.fingerprint or self._geometry.fingerprint
            if self.generation:
                base = token_keys_of.namespace_root(base, self.generation)
            request.root = token_keys_of.namespace_root(base, self._client.namespace_secret, request.identity.salt)
            # Tenants are told apart by salt alone; the node needs a number, and one that tells nothing.
            tenant_root = token_keys_of.namespace_root(NO_PARENT, self._client.namespace_secret, request.identity.salt)
            request.tenant = int.from_bytes(tenant_root[:8], "little") if request.identity.salt else 0
        return True

    def extend_keys(self, request: Tracked, tokens: Sequence[int], chunks: int) -> None:
        """Derive the keys of so many leading chunks, where they are not there yet."""
        have = len(request.keys) // KEY
        if have >= chunks:
            return
        size = self._geometry.chunk_tokens
        request.keys += token_keys_of.token_keys(
            request.root,
            list(tokens[have * size : chunks * size]),
            size,
            request.identity.of_chunks(chunks * size, size, have),
            bytes(request.keys[-KEY:]) or None,
        )

    def ask(self, request: Tracked, tokens: Sequence[int], chunks: int) -> Answer:
        """What the node has of the leading chunks; the last answer as long as it can be believed."""
        now, answer = self._now_ms(), request.answer
        if answer is not None and answer.asked_chunks == chunks and answer.attach_count == self._client.attach_count:
            age_ms = now - answer.at_ms
            held_ms = self._lease_ms_max if answer.lease else MISS_MS
            if age_ms < (PENDING_MS if answer.pending_chunks else held_ms):
                return answer
        if answer is not None:
            self.release(answer)
        self.extend_keys(request, tokens, chunks)
        status, lease, hit, pending = self._client.lookup(bytes(request.keys[: chunks * KEY]), request.tenant, True)
        took_ms = self._now_ms() - now
        if status != "ok":
            lease = hit = pending = 0
            request.miss = "lookup_" + status
            if status == "timed_out" and self._on_late is not None:
                self._on_late()
        elif hit < chunks:
            request.miss = "not_found" if hit == 0 else "partly_found"
        else:
            request.miss = ""
        if hit and not lease:  # the node is out of leases: without one the chunks may vanish while they are read
            hit, request.miss = 0, "no_lease"
        self._counters.lookup(status, took_ms, chunks, hit)
        request.answer = Answer(lease, hit, pending, chunks, now, self._client.attach_count)
        return request.answer

    def announce(self, request: Tracked, tokens: Sequence[int], chunks: int) -> None:
        """Have what is behind the node's memory brought in, before the engine has room for the request. Takes no lease."""
        if chunks and self._client.has_tiers and self.ready(request):
            self.extend_keys(request, tokens, chunks)
            self._client.lookup(bytes(request.keys[: chunks * KEY]), request.tenant, False)

    def worth_waiting(self, request: Tracked) -> bool:
        """Whether chunks that are on their way may still come in time."""
        now = self._now_ms()
        if request.waiting_since_ms is None:
            request.waiting_since_ms = now
        return now - request.waiting_since_ms < self._fetch_ms_max

    def release(self, answer: Answer) -> None:
        """Give its lease back; nothing of it can be loaded any more."""
        if answer.lease and answer.attach_count == self._client.attach_count:
            self._client.release(answer.lease)
        answer.lease = 0
        answer.hit_chunks = 0

    def drop(self, request: Tracked) -> None:
        """The request needs no answer any more."""
        if request.answer is not None:
            self.release(request.answer)
            request.answer = None
