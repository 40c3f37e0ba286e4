"""What is known of one request on its way, and whom it concerns."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from kvcommons_router.auth import Tenant
from kvcommons_router.binding import Ticket
from kvcommons_router.body import NOTHING, Buffers
from kvcommons_router.choice import Hits
from kvcommons_router.context import Context
from kvcommons_router.errors import Refusal
from kvcommons_router.fleet import Group, Instance
from kvcommons_router.index import Depths, Inquiry
from kvcommons_router.request import Request
from kvcommons_router.tracing import Trace
from kvcommons_router.upstream import Upstream


class Client(Protocol):
    """Who gets the answer."""

    transport: asyncio.Transport
    fd: int  # of its socket, -1 if there is none that bytes can be sent to

    def exchange_done(self, *, keep: bool) -> None:
        """The answer has been relayed to its end."""

    def exchange_refused(self, request: Request, refusal: Refusal, request_id: bytes) -> None:
        """There is no answer but this refusal."""

    def cut(self) -> None:
        """The answer can't be completed."""


class Owner(Protocol):
    """Who keeps account of requests under way."""

    def exchange_ended(self, exchange: Journey) -> None:
        """A request is no longer under way."""

    def request_done(self, exchange: Journey, instance: Instance | None) -> None:
        """It is so because of an engine's answer, or because its client left."""


class Journey(Inquiry):
    """The state of an exchange; what changes it is in `exchange.py`."""

    # Many attributes: in slots they are found as quickly as few ones.
    __slots__ = (
        "affinity",
        "attempts",
        "before",
        "chunk_client",
        "client",
        "context",
        "decoding",
        "depths",
        "dispatched_at",
        "done",
        "first_byte_at",
        "forwarded",
        "head_bytes",
        "hits",
        "instance",
        "keep",
        "length",
        "located_at",
        "owner",
        "paused",
        "pieces",
        "relayed",
        "request",
        "session",
        "status",
        "streaming",
        "tenant",
        "ticket",
        "tokens",
        "trace",
        "tried",
        "upstream",
        "was_reused",
    )

    def __init__(
        self,
        context: Context,
        owner: Owner,
        client: Client,
        request: Request,
        tenant: Tenant,
        group: Group,
        id_bytes: bytes,
    ) -> None:
        super().__init__(group, id_bytes)
        self.context = context
        self.owner = owner
        self.client = client
        self.request = request
        self.tenant = tenant
        self.forwarded: Buffers = NOTHING  # the body as it is sent on
        self.length = 0  # tokens, estimated
        self.affinity = 0  # a hash of the first text
        self.session = 0  # a hash of what the client calls its session
        self.streaming = False
        # What the index says.
        self.depths: Depths | None = None
        self.hits: Hits | None = None
        # While it waits for an instance.
        self.ticket: Ticket[Any] | None = None
        self.located_at = 0.0
        # The attempt under way.
        self.attempts = 0
        self.tried: tuple[Instance, ...] = ()
        self.instance: Instance | None = None
        self.upstream: Upstream | None = None
        self.tokens = 0
        self.decoding = False
        self.was_reused = False
        self.before = 0.0  # tokens that waited at the instance when it was sent there
        self.dispatched_at = 0.0
        self.first_byte_at = 0.0
        # The answer.
        self.status = 0
        self.head_bytes = b""  # not sent yet: until the first byte of the body another instance may still be asked
        self.chunk_client = False
        self.keep = True
        self.relayed = 0
        self.pieces = 0
        self.paused = False
        self.done = False
        self.trace: Trace | None = None

    @property
    def tenant_name(self) -> str:
        """Whose it is."""
        return self.tenant.name
