"""One request on its way: choose an instance, send, relay; and again elsewhere, until the first byte of an answer."""

from __future__ import annotations

import logging

from kvcommons_router import picker
from kvcommons_router.choice import choose, hits_of
from kvcommons_router.errors import Refusal
from kvcommons_router.fleet import Instance
from kvcommons_router.framing import answer_head, is_unframed, request_head
from kvcommons_router.index import Depths
from kvcommons_router.journey import Journey
from kvcommons_router.picker import NO_HIT, Shape, wait_seconds
from kvcommons_router.response import Head
from kvcommons_router.upstream import Upstream

logger = logging.getLogger(__name__)

# An engine that answers so can't serve this request now; another one may.
RETRIED_STATUSES = frozenset({502, 503, 504})


class Exchange(Journey):
    """From a request that is whole to the last byte of its answer."""

    __slots__ = ()

    # Choosing.

    def located(self, depths: Depths | None) -> None:
        """The index has answered (None: it can't), so an instance can be chosen."""
        if self.done or self.attempts:  # asked again while it waited, and sent meanwhile: it must not be sent twice
            return
        self.depths = depths
        if depths is None:
            self.hits = None
        else:
            self.hits = hits_of(depths, self.length / max(self.text_bytes, 1) * self.context.step_bytes)
        if self.ticket is not None:
            self.context.waiting.heard(self, self.context.loop_time())
        else:
            self._dispatch()

    def _dispatch(self) -> None:
        context, group = self.context, self.group
        shape = Shape(self.length, self.affinity, self.session, group.adapter)
        instance = choose(context, group, self.tried, self.hits, shape)
        if instance is None:
            self.refuse(Refusal(503, "No instance of this model can be reached.", retry_after_seconds=1))
            return
        if context.binds_late and self.hits is not None and not self.tried and len(group.usable) > 1:
            now = context.loop_time()
            if not context.waiting.has_room(group, instance, now):
                context.waiting.enter(self, shape, now)
                return
        self.send_to(instance)

    def send_to(self, instance: Instance) -> None:
        """Sends it to an instance."""
        context = self.context
        self.attempts += 1
        self.tried = (*self.tried, instance)
        self.instance = instance
        hit = self.hits.get(instance.index, NO_HIT) if self.hits is not None else NO_HIT
        self.hit = hit
        self.depth = self.depths.get(instance.index) if self.depths is not None else None
        if self.trace is not None:
            self.span = self.trace.sent(self, instance)
        uncached = picker.uncached_tokens(hit, self.length, context.weights.credits)
        self.tokens = int(uncached)
        candidate = instance.candidate
        self.dispatched_at = now = context.loop_time()
        wait = wait_seconds(candidate, now)
        self.before = wait / candidate.prefill.token_seconds if wait else 0.0
        work = candidate.prefill.seconds(uncached, self.length)
        context.load.dispatched(instance.index, self.tokens, work, now)
        self.first_byte_at = 0.0
        self.decoding = False
        if not self.streaming:  # its first byte will be its last: when it is prefilled can only be guessed
            context.guesses.add(now + wait + work, self)
        if self.keys8:
            context.index.dispatched(self, instance)
            context.waiting.sent(self)
        if self.group.adapter:
            instance.uses(self.group.adapter)
        self._send(instance)

    # Sending.

    def _send(self, instance: Instance) -> None:
        upstream = instance.pool.take_idle(self.dispatched_at)
        if upstream is not None:
            self._write(upstream)
        else:
            self.context.spawn(self._connect(instance))

    async def _connect(self, instance: Instance) -> None:
        try:
            upstream = await instance.pool.connect()
        except OSError as error:
            if not self.done:
                self.context.health_failed(instance)
                self._attempt_failed("connect_failed", f"{instance.name} can't be reached: {error or 'timed out'}")
            return
        upstream.last_at = self.context.loop_time()
        if self.done or self.instance is not instance:
            upstream.pool.give_back(upstream)
            return
        self._write(upstream)

    def _write(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.was_reused = upstream.reused
        request = self.request
        instance = self.instance
        assert instance is not None
        upstream.begin(self, self.dispatched_at, dechunk=request.http10)
        (body, end), lines, span = self.forwarded, instance.host_lines, self.span
        if span is not None:
            end, lines = span.stamped(end), lines + span.head_lines
        head = request_head(request, lines, self.id_bytes, len(body) + len(end))
        upstream.send(head, body, end)

    # Receiver of the upstream.

    def head(self, upstream: Upstream, head: Head) -> None:
        """The engine answers."""
        context, instance = self.context, self.instance
        assert instance is not None
        if head.status in RETRIED_STATUSES and self._may_retry():
            upstream.abandon()
            self.upstream = None
            context.health_failed(instance)
            self._attempt_failed("refused", f"{instance.name} answered {head.status}")
            return
        self.status = head.status
        request = self.request
        self.keep = request.keep_alive and not context.draining
        unframed = is_unframed(head)
        self.chunk_client = unframed and not request.http10
        if request.http10 and (unframed or head.chunked):
            self.keep = False
        self.head_bytes = answer_head(head, self.id_bytes, http10=request.http10, keep=self.keep)

    def body(self, data: bytes, payload: bytes | None) -> None:
        """The next piece of the answer."""
        now = self.context.loop_time()
        upstream = self.upstream
        if payload is not None:
            data = payload
        elif self.chunk_client:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self.first_byte_at:
            self._first_byte(now)
            if self.head_bytes:
                data = self.head_bytes + data
                self.head_bytes = b""
            if upstream is not None and payload is None and not self.chunk_client:
                upstream.pass_to(self.client.transport, self.client.fd)
        self.client.transport.write(data)
        if upstream is not None:
            upstream.note(data, now)

    def _first_byte(self, now: float) -> None:
        instance = self.instance
        assert instance is not None
        self.first_byte_at = now
        context = self.context
        head_at = instance.candidate.head_at
        self.prefilled()
        if self.streaming and self.status == 200:
            if head_at > self.dispatched_at:
                instance.learner.add_next(self.tokens, now - head_at)
            else:
                instance.learner.add(self.tokens, now - self.dispatched_at, self.before)
        context.recorder.observe_seconds(context.layout.first_byte_seconds, instance.index, now - self.request.received)

    def prefilled(self) -> None:
        """The instance has done, or is believed to have done, this request's prefill."""
        instance = self.instance
        if instance is not None and not self.decoding:
            self.decoding = True
            context = self.context
            context.load.prefilled(instance.index, self.tokens, context.loop_time())
            context.waiting.wake()

    def answered(self) -> None:
        """The engine's answer is complete."""
        self._let_go()
        if self.head_bytes:  # an answer without a body
            self.client.transport.write(self.head_bytes)
            self.relayed += len(self.head_bytes)
            self.head_bytes = b""
        if self.chunk_client:
            self.client.transport.write(b"0\r\n\r\n")
        context, instance = self.context, self.instance
        assert instance is not None
        context.health.succeeded(instance.index)
        self._end("ok")
        self.client.exchange_done(keep=self.keep)

    def broken(self, reason: str) -> None:
        """The engine went away in the middle."""
        self._let_go()
        context, instance = self.context, self.instance
        assert instance is not None
        if self.was_reused and self.first_byte_at == 0.0 and not self.head_bytes:
            # The engine had closed an idle connection just then: that says nothing about the engine.
            self.was_reused = False
            instance.pool.close_idle()
            context.spawn(self._connect(instance))
            return
        if context.health_failed(instance):
            logger.warning("%s is left out for a while: %s", instance.name, reason)
        if self.first_byte_at == 0.0:
            self.head_bytes = b""
            self._attempt_failed("broken", f"{instance.name}: {reason}")
            return
        logger.warning("request %s: %s broke its answer off: %s", self.request_id, instance.name, reason)
        self.status = 502
        self._end("broken")
        self.client.cut()

    def _may_retry(self) -> bool:
        return self.attempts < self.context.settings.limits.attempts_max and any(
            one not in self.tried for one in self.group.usable
        )

    def _attempt_failed(self, outcome: str, reason: str) -> None:
        context = self.context
        self._close_attempt(outcome)
        if self._may_retry():
            context.recorder.count(context.layout.retries)
            self._dispatch()
            return
        self.refuse(Refusal(502, f"No instance answered; the last one: {reason}.", retry_after_seconds=1))

    def refuse(self, refusal: Refusal) -> None:
        """Gives up before anything was answered."""
        self.done = True
        self.status = refusal.status
        self.owner.exchange_ended(self)
        self.client.exchange_refused(self.request, refusal, self.id_bytes)

    # Ending.

    def _let_go(self) -> Upstream | None:
        """The connection is no longer this request's; what it has relayed is taken over."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            relayed, pieces, self.tail = upstream.account()
            self.relayed += relayed
            self.pieces += pieces
        return upstream

    def _close_attempt(self, outcome: str) -> None:
        instance = self.instance
        if instance is None:
            return
        self.instance = None
        context = self.context
        if self.first_byte_at == 0.0 and self.keys8 and outcome != "ok":
            context.index.failed(self, instance)
        context.load.finished(instance.index, self.tokens, was_decoding=self.decoding)
        context.count_attempt(instance.index, outcome)
        if self.span is not None:
            first = self.first_byte_at
            self.span.ended(outcome, self.status, first - self.dispatched_at if first else None)
        if not self.decoding:
            context.waiting.wake()

    def _end(self, outcome: str) -> None:
        self.done = True
        context, instance = self.context, self.instance
        assert instance is not None
        if outcome == "ok" and self.keys8:
            if self.status < 300:
                context.index.answered(self, instance)
            else:
                context.index.failed(self, instance)  # refused by the engine: nothing was computed
        self._close_attempt(outcome)
        self.owner.request_done(self, instance)

    def client_left(self) -> None:
        """Nobody waits any more: the engine learns it by its connection's end."""
        if self.done:
            return
        if self.ticket is not None:
            self.context.waiting.leave(self)
        upstream = self._let_go()
        if upstream is not None:
            upstream.abandon()
        self.done = True
        self.status = 499
        instance = self.instance
        self._close_attempt("cancelled")
        self.owner.request_done(self, instance)

    def pause(self) -> None:
        """The client is behind."""
        self.paused = True
        if self.upstream is not None:
            self.upstream.transport.pause_reading()

    def resume(self) -> None:
        """The client caught up."""
        if self.paused:
            self.paused = False
            if self.upstream is not None:
                self.upstream.last_at = self.context.loop_time()
                self.upstream.transport.resume_reading()

    def check(self, now: float) -> None:
        """Looks at the clock; called about once a second."""
        upstream, instance = self.upstream, self.instance
        if self.ticket is not None:
            self.context.waiting.check(self, now)
        if upstream is None or instance is None or self.paused:
            return
        limits = self.context.settings.limits
        if self.first_byte_at == 0.0:
            if now - self.dispatched_at > limits.first_byte_seconds:
                upstream.abandon()
                self.upstream = None
                self.context.health_failed(instance)
                self.head_bytes = b""
                self._close_attempt("timeout")
                self.refuse(Refusal(504, f"{instance.name} did not begin to answer in time.", retry_after_seconds=1))
        elif now - upstream.heard_at(now) > limits.between_bytes_seconds:
            upstream.abandon()
            self.upstream = None
            self.context.health_failed(instance)
            self.status = 504
            self._end("timeout")
            self.client.cut()
