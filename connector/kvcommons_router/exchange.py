"""One request on its way: choose an instance, send, relay; and again elsewhere, until the first byte of an answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvcommons_router import picker
from kvcommons_router.body import Buffers
from kvcommons_router.errors import REASONS, Refusal
from kvcommons_router.fleet import Group, Instance
from kvcommons_router.index import Depth, Depths
from kvcommons_router.picker import NO_HIT, Hit, Shape
from kvcommons_router.response import Head
from kvcommons_router.upstream import Upstream

if TYPE_CHECKING:
    from kvcommons_router.app import App
    from kvcommons_router.auth import Tenant
    from kvcommons_router.http_server import ClientConnection, Request

logger = logging.getLogger(__name__)

# An engine that answers so can't serve this request now; another one may.
RETRIED_STATUSES = frozenset({502, 503, 504})
USAGE_TAIL_BYTES = 2048


class Exchange:
    """From a request that is whole to the last byte of its answer."""

    request_id = ""
    forwarded: Buffers = ()  # the body as it is sent on
    forwarded_bytes = 0
    text_keys: Sequence[int] = ()
    text_bytes = 0
    length = 0
    shape = Shape(0, 0)
    streaming = False
    # What the index says.
    keys8: Sequence[bytes] = ()
    depths: Depths | None = None
    hits: Mapping[int, Hit] | None = None
    # The attempt under way.
    attempts = 0
    instance: Instance | None = None
    upstream: Upstream | None = None
    depth: Depth | None = None
    hit = NO_HIT
    intended: Sequence[bytes] = ()
    tokens = 0
    decoding = False
    was_reused = False
    sent_alone = False
    dispatched_at = 0.0
    first_byte_at = 0.0
    last_at = 0.0
    # The answer.
    status = 0
    head_bytes = b""  # not sent yet: until the first byte of the body another instance may still be asked
    chunk_client = False
    keep = True
    relayed = 0
    pieces = 0
    last = b""
    before_last = b""
    paused = False
    done = False

    def __init__(self, app: App, conn: ClientConnection, request: Request, tenant: Tenant, group: Group) -> None:
        self.app = app
        self.conn = conn
        self.request = request
        self.tenant = tenant
        self.group = group
        self.tried: list[Instance] = []

    @property
    def tail(self) -> bytes:
        """The end of the answer, where the usage is."""
        return (self.before_last + self.last)[-USAGE_TAIL_BYTES:]

    # Choosing.

    def located(self, depths: Depths | None) -> None:
        """The index has answered (None: it can't), so an instance can be chosen."""
        if self.done:
            return
        self.depths = depths
        if depths is None:
            self.hits = None
        else:
            # The last, incomplete step has no key; what is hit is counted by the share of the text it covers.
            step = self.length / max(self.text_bytes, 1) * self.app.step_bytes
            self.hits = {
                index: Hit(int(d[0] * step), int(d[1] * step), int(d[2] * step), int(d[3] * step))
                for index, d in depths.items()
            }
        self._dispatch()

    def _choose(self) -> Instance | None:
        group, tried = self.group, self.tried
        members = group.usable
        candidates = group.candidates
        if tried:
            members = tuple([one for one in group.usable if one not in tried])
            if not members:
                return None
            candidates = [one.candidate for one in members]
        if len(members) == 1:
            return members[0]
        hits = self.hits
        found = None if hits is None else [hits.get(one.index, NO_HIT) for one in members]
        app = self.app
        group.turn += 1
        return members[
            picker.pick(
                app.policy, candidates, found, self.shape, rho=app.utilisation.rho, weights=app.weights, turn=group.turn
            )
        ]

    def _dispatch(self) -> None:
        instance = self._choose()
        if instance is None:
            self._give_up(Refusal(503, "No instance of this model can be reached.", retry_after_seconds=1))
            return
        app = self.app
        self.attempts += 1
        self.tried.append(instance)
        self.instance = instance
        hit = self.hits.get(instance.index, NO_HIT) if self.hits is not None else NO_HIT
        self.hit = hit
        self.depth = self.depths.get(instance.index) if self.depths is not None else None
        uncached = picker.uncached_tokens(hit, self.length, app.weights.credits)
        self.tokens = int(uncached)
        candidate = instance.candidate
        self.sent_alone = candidate.waiting_tokens == 0 and self.streaming
        work = candidate.prefill.seconds(uncached, self.length)
        app.load.dispatched(instance.index, self.tokens, work)
        self.dispatched_at = self.last_at = app.loop_time()
        self.first_byte_at = 0.0
        self.decoding = False
        if not self.streaming:  # its first byte will be its last: when it is prefilled can only be guessed
            wait = candidate.waiting_tokens * candidate.prefill.token_seconds
            app.guess_prefilled(self, self.dispatched_at + wait + work)
        if self.text_keys:
            app.index.dispatched(self, instance)
        self._send(instance)

    # Sending.

    def _send(self, instance: Instance) -> None:
        upstream = instance.pool.take_idle(self.dispatched_at)
        if upstream is not None:
            self._write(upstream)
        else:
            self.app.spawn(self._connect(instance))

    async def _connect(self, instance: Instance) -> None:
        try:
            upstream = await instance.pool.connect()
        except OSError as error:
            if not self.done:
                self.app.health_failed(instance)
                self._attempt_failed("connect_failed", f"{instance.name} can't be reached: {error or 'timed out'}")
            return
        upstream.last_at = self.app.loop_time()
        if self.done or self.instance is not instance:
            instance.pool.give_back(upstream)
            return
        self._write(upstream)

    def _write(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.was_reused = upstream.reused
        request = self.request
        instance = self.instance
        assert instance is not None
        upstream.begin(self, dechunk=request.http10)
        head = b"%b %b HTTP/1.1\r\n%b%bContent-Length: %d\r\nX-Request-Id: %b\r\n\r\n" % (
            request.method,
            request.target,
            instance.host_lines,
            request.head.forwarded,
            self.forwarded_bytes,
            self.request_id.encode(),
        )
        upstream.transport.write(b"".join((head, *self.forwarded)))

    # Receiver of the upstream.

    def head(self, upstream: Upstream, head: Head) -> None:
        """The engine answers."""
        app, instance = self.app, self.instance
        assert instance is not None
        if head.status in RETRIED_STATUSES and self._may_retry():
            upstream.abandon()
            self.upstream = None
            app.health_failed(instance)
            self._attempt_failed("refused", f"{instance.name} answered {head.status}")
            return
        self.status = head.status
        request = self.request
        self.keep = request.keep_alive and not app.draining
        unframed = not head.chunked and head.content_length < 0 and head.status not in (204, 304)
        self.chunk_client = unframed and not request.http10
        if request.http10 and (unframed or head.chunked):
            self.keep = False
        lines = [
            b"HTTP/1.1 %d %s" % (head.status, head.reason or REASONS.get(head.status, "").encode()),
            b"X-Request-Id: %s" % self.request_id.encode(),
        ]
        if head.lines:
            lines.append(head.lines)
        if (head.chunked or self.chunk_client) and not request.http10:
            lines.append(b"Transfer-Encoding: chunked")
        if not self.keep:
            lines.append(b"Connection: close")
        elif request.http10:
            lines.append(b"Connection: keep-alive")
        self.head_bytes = b"\r\n".join(lines) + b"\r\n\r\n"

    def body(self, data: bytes, payload: bytes | None) -> None:
        """The next piece of the answer."""
        app = self.app
        self.last_at = now = app.loop_time()
        if self.upstream is not None:
            self.upstream.last_at = now
        if not self.first_byte_at:
            self._first_byte(now)
        if payload is not None:
            data = payload
        elif self.chunk_client:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self.head_bytes:
            data = self.head_bytes + data
            self.head_bytes = b""
        self.conn.transport.write(data)
        self.relayed += len(data)
        self.pieces += 1
        self.before_last = self.last
        self.last = data

    def _first_byte(self, now: float) -> None:
        instance = self.instance
        assert instance is not None
        self.first_byte_at = now
        app = self.app
        self.prefilled()
        seconds = now - self.dispatched_at
        if self.sent_alone and self.status == 200:
            instance.learner.add(self.tokens, seconds)
        app.recorder.observe_seconds(app.layout.first_byte_seconds, instance.index, now - self.request.received)

    def prefilled(self) -> None:
        """The instance has done, or is believed to have done, this request's prefill."""
        instance = self.instance
        if instance is not None and not self.decoding:
            self.decoding = True
            self.app.load.prefilled(instance.index, self.tokens)

    def answered(self) -> None:
        """The engine's answer is complete."""
        self.upstream = None
        if self.head_bytes:  # an answer without a body
            self.conn.transport.write(self.head_bytes)
            self.relayed += len(self.head_bytes)
            self.head_bytes = b""
        if self.chunk_client:
            self.conn.transport.write(b"0\r\n\r\n")
        app, instance = self.app, self.instance
        assert instance is not None
        app.health.succeeded(instance.index)
        self._end("ok")
        self.conn.exchange_done(keep=self.keep)

    def broken(self, reason: str) -> None:
        """The engine went away in the middle."""
        self.upstream = None
        app, instance = self.app, self.instance
        assert instance is not None
        if self.was_reused and self.first_byte_at == 0.0 and not self.head_bytes:
            # The engine had closed an idle connection just then: that says nothing about the engine.
            self.was_reused = False
            instance.pool.close_idle()
            app.spawn(self._connect(instance))
            return
        if app.health_failed(instance):
            logger.warning("%s is left out for a while: %s", instance.name, reason)
        if self.first_byte_at == 0.0:
            self.head_bytes = b""
            self._attempt_failed("broken", f"{instance.name}: {reason}")
            return
        logger.warning("request %s: %s broke its answer off: %s", self.request_id, instance.name, reason)
        self.status = 502
        self._end("broken")
        self.conn.cut()

    def _may_retry(self) -> bool:
        return self.attempts < self.app.settings.limits.attempts_max and any(
            one not in self.tried for one in self.group.usable
        )

    def _attempt_failed(self, outcome: str, reason: str) -> None:
        app = self.app
        self._close_attempt(outcome)
        if self._may_retry():
            app.recorder.count(app.layout.retries)
            self._dispatch()
            return
        self._give_up(Refusal(502, f"No instance answered; the last one: {reason}.", retry_after_seconds=1))

    def _give_up(self, refusal: Refusal) -> None:
        self.done = True
        self.status = refusal.status
        self.app.exchange_ended(self)
        self.conn.exchange = None
        self.conn.refuse(self.request, refusal, self.request_id.encode())
        self.conn.exchange_refused()

    # Ending.

    def _close_attempt(self, outcome: str) -> None:
        instance = self.instance
        if instance is None:
            return
        self.instance = None
        app = self.app
        if self.first_byte_at == 0.0 and self.text_keys and outcome != "ok":
            app.index.failed(self, instance)
        app.load.finished(instance.index, self.tokens, was_decoding=self.decoding)
        app.count_attempt(instance.index, outcome)

    def _end(self, outcome: str) -> None:
        self.done = True
        app, instance = self.app, self.instance
        assert instance is not None
        if outcome == "ok" and self.text_keys:
            if self.status < 300:
                app.index.answered(self, instance)
            else:
                app.index.failed(self, instance)  # refused by the engine: nothing was computed
        self._close_attempt(outcome)
        app.request_done(self, instance)

    def client_left(self) -> None:
        """Nobody waits any more: the engine learns it by its connection's end."""
        if self.done:
            return
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abandon()
        self.done = True
        self.status = 499
        instance = self.instance
        self._close_attempt("cancelled")
        self.app.request_done(self, instance)

    def pause(self) -> None:
        """The client is behind."""
        self.paused = True
        if self.upstream is not None:
            self.upstream.transport.pause_reading()

    def resume(self) -> None:
        """The client caught up."""
        if self.paused:
            self.paused = False
            self.last_at = self.app.loop_time()
            if self.upstream is not None:
                self.upstream.transport.resume_reading()

    def check(self, now: float) -> None:
        """Looks at the clock; called about once a second."""
        upstream, instance = self.upstream, self.instance
        if upstream is None or instance is None or self.paused:
            return
        limits = self.app.settings.limits
        if self.first_byte_at == 0.0:
            if now - self.dispatched_at > limits.first_byte_seconds:
                upstream.abandon()
                self.upstream = None
                self.app.health_failed(instance)
                self.head_bytes = b""
                self._close_attempt("timeout")
                self._give_up(Refusal(504, f"{instance.name} did not begin to answer in time.", retry_after_seconds=1))
        elif now - self.last_at > limits.between_bytes_seconds:
            upstream.abandon()
            self.upstream = None
            self.app.health_failed(instance)
            self.status = 504
            self._end("timeout")
            self.conn.cut()
