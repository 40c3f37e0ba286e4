"""From a whole request to an exchange: whose it is, which model, what of it can be reused, and what goes to the engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import xxhash
from kvcommons_core import textkeys

from kvcommons_router import body as bodies
from kvcommons_router.auth import Authenticator, Tenant
from kvcommons_router.budgets import Budgets
from kvcommons_router.context import Context
from kvcommons_router.errors import Refusal, not_served, unserved
from kvcommons_router.exchange import Exchange
from kvcommons_router.fleet import Group
from kvcommons_router.journey import Client, Owner
from kvcommons_router.known_heads import KnownHeads
from kvcommons_router.own_paths import KEPT, is_own
from kvcommons_router.request import Request

AFFINITY_STEP: Final = 3  # texts that share this many steps and one more, about 8 KiB, meet when there is no index
SEEDS_MAX: Final = 10_000
TEXTS: Final = frozenset({b"/v1/chat/completions", b"/v1/completions"})  # whose text has keys
RESPONSES: Final = b"/v1/responses"
RELAYED: Final = TEXTS | {b"/v1/embeddings", RESPONSES}
POST_ALONE: Final = {b"POST": "POST"}
FORWARDED_METHODS: Final = {name.encode(): name for name in ("GET", "POST", "PUT", "PATCH", "DELETE")}
BEGINNING_BYTES: Final = 8192  # of a body without text keys: those that begin alike meet
TEXT_BEGINNINGS_MAX: Final = 10_000  # of whose text was last sent by which tenant


def forwarded(patterns: Sequence[str]) -> re.Pattern[bytes] | None:
    """Matches the paths that are forwarded as they are; a `*` at the end stands for any end."""
    if not patterns:
        return None
    parts = [re.escape(one.removesuffix("*")) + (".*" if one.endswith("*") else "") for one in patterns]
    return re.compile("|".join(parts).encode(), re.DOTALL)


def _shown(path: bytes) -> str:
    return path.decode("latin-1")[:200]


class Admission:
    """Refuses what must be refused, as early as it can be, and prepares the rest."""

    def __init__(self, context: Context, auth: Authenticator, budgets: Budgets) -> None:
        self._context = context
        self.auth = auth
        self.budgets = budgets
        self.recorder = context.recorder
        self.limits = context.settings.limits
        self.drops_authorization = auth.enabled
        self.heads = KnownHeads()
        self._plain = textkeys.PlainReader([*bodies.ROUTER_OWNED, *bodies.NESTED])
        self._seeds: dict[tuple[str, str], int] = {}
        self._beginnings: dict[int, str] = {}
        self._transfer_params = context.settings.transfer_params
        self._forwarded = forwarded(context.settings.forward_paths)

    @property
    def takes_trace(self) -> bool:
        """Whether `traceparent` is the router's to read; else it goes on as any other header."""
        return self._context.tracing is not None

    def relays(self, path: bytes) -> bool:
        """Whether engines answer what is asked at a path."""
        if path in RELAYED:
            return True
        patterns = self._forwarded
        return patterns is not None and not is_own(path) and patterns.fullmatch(path) is not None

    def engine_keys(self, any_engine: bool) -> None:
        """Takes whether engines ask for keys of their own: the client's is for the router, or would stand beside one."""
        drops = self.auth.enabled or any_engine
        if drops is not self.drops_authorization:
            self.drops_authorization = drops
            self.auth.epoch += 1  # what was read of heads before is to be read again
            self.heads.clear()

    def admit_head(self, request: Request, length: int) -> None:
        """Refuses what can be refused before its body comes.

        :raises Refusal: with the reason.
        """
        path = request.path
        if self.relays(path):
            takes = POST_ALONE if path in RELAYED else FORWARDED_METHODS
            if request.method not in takes:
                raise Refusal(
                    405, f"{_shown(path)} takes {', '.join(takes.values())}.", param=", ".join(takes.values())
                )
            self.auth.tenant(request.head.authorization)
            if length > self.limits.body_bytes_max:
                raise self.budgets.too_large()
            return
        if not is_own(path):
            raise Refusal(404, f"There is nothing at {_shown(path)}.", code="not_found")
        if request.method not in (b"GET", b"HEAD"):
            raise Refusal(405, f"{_shown(path)} takes GET.", param="GET, HEAD")
        if path.startswith(KEPT):
            self.auth.tenant(request.head.authorization)

    def admit(self, owner: Owner, client: Client, request: Request, id_bytes: bytes) -> Exchange:
        """A request that is on its way from now on; its body is taken from it.

        :raises Refusal: with the reason.
        """
        tenant = self.auth.tenant(request.head.authorization)
        body = request.body
        path = request.path
        plain = self._plain.read(body) if path in TEXTS else None
        fields: bodies.Fields | None = None
        canonical: bytes | None
        if plain is not None:
            model, streaming, canonical = plain
            group = self._group_of(model)
        elif path in RELAYED or body.lstrip()[:1] == b"{":
            fields = bodies.parse(body)
            bodies.check_nested(fields)
            group = self._group(fields)
            streaming = fields.get("stream") is True
            canonical = textkeys.canonical_text(fields)[0] if path in TEXTS else None
        else:  # what an engine was said to know what to do with
            group, streaming, canonical = self._group({}), False, None
        self.budgets.check(tenant.name)
        if tenant.allowance is not None:
            self._context.quotas.check(tenant.name, tenant.allowance)
        exchange = Exchange(self._context, owner, client, request, tenant, group, id_bytes)
        exchange.streaming = streaming
        exchange.session = request.head.session or bodies.user_of(body)
        if canonical is not None:
            additions = self._text(exchange, canonical, id_bytes)
        else:
            additions = self._no_text(exchange, body, id_bytes) if fields is not None else b""
        if fields is not None:
            exchange.forwarded = bodies.rewrite(body, fields, additions)
        else:
            exchange.forwarded = bodies.extend(body, additions) if plain is not None else (body, b"")
        request.body = b""
        self.budgets.begin(tenant.name)
        if tenant.allowance is not None:
            self._context.quotas.spend(tenant.name, exchange.length)
        return exchange

    def _no_text(self, exchange: Exchange, body: bytes, id_bytes: bytes) -> bytes:
        """Takes an object without text keys; what is added to it."""
        if exchange.request.path == RESPONSES:
            exchange.affinity = xxhash.xxh3_64_intdigest(body[:BEGINNING_BYTES])
        exchange.text_bytes = len(body)
        exchange.length = exchange.group.ratio.tokens(len(body))
        return bodies.members(id_bytes, exchange.tenant.salt, b"", 0, transfer_params=False)

    def _text(self, exchange: Exchange, canonical: bytes, id_bytes: bytes) -> bytes:
        """Takes the text of a request; what is added to its body."""
        tenant, group = exchange.tenant, exchange.group
        text_bytes = len(canonical)
        seed = self._seed(group.model, tenant)
        keys, quoted = textkeys.chain8(canonical, seed)
        exchange.keys8 = keys
        exchange.text_bytes = text_bytes
        exchange.length = group.ratio.tokens(text_bytes)
        if keys:
            exchange.affinity = int.from_bytes(keys[min(AFFINITY_STEP, len(keys) - 1)], "little")
        else:
            exchange.affinity = xxhash.xxh3_64_intdigest(canonical, seed)
        return bodies.members(
            id_bytes,
            tenant.salt,
            quoted,
            text_bytes,
            transfer_params=self._transfer_params,
            other_tenant=self.auth.enabled and self._begun_by_another(canonical, tenant.name),
        )

    def _begun_by_another(self, canonical: bytes, tenant: str) -> bool:
        """Whether another tenant was the last to send a text that begins alike. For those who run the pool, who ask why nothing was
        found; no client ever hears of it."""
        if len(canonical) < textkeys.STEP_BYTES:
            return False
        beginning = xxhash.xxh3_64_intdigest(canonical[: textkeys.STEP_BYTES])
        if len(self._beginnings) >= TEXT_BEGINNINGS_MAX:
            self._beginnings.clear()
        before = self._beginnings.get(beginning, tenant)
        self._beginnings[beginning] = tenant
        return before != tenant

    def _group(self, fields: bodies.Fields) -> Group:
        model = fields.get("model")
        groups = self._context.fleet.groups
        if model is None and len(groups) == 1:
            model = next(iter(groups))
        if not isinstance(model, str):
            raise Refusal(400, "`model` must name a model.", code="invalid_model", param="model")
        return self._group_of(model)

    def _group_of(self, model: str) -> Group:
        groups = self._context.fleet.groups
        group = groups.get(model)
        if group is None:
            raise not_served(model, groups)
        if not group.usable:
            raise unserved(group.model)
        return group

    def _seed(self, model: str, tenant: Tenant) -> int:
        seed = self._seeds.get((model, tenant.name))
        if seed is None:
            if len(self._seeds) >= SEEDS_MAX:
                self._seeds.clear()
            seed = textkeys.text_seed(model, "", tenant.name, tenant.salt or "")
            self._seeds[(model, tenant.name)] = seed
        return seed
