"""How much a worker takes on at once: requests in all and of each tenant, and bytes of their bodies."""

from __future__ import annotations

from kvcommons_router.errors import Refusal
from kvcommons_router.metrics import Recorder
from kvcommons_router.request import Request
from kvcommons_router.settings import LimitSettings


class Budgets:
    """Counts what is under way, and refuses what is beyond the limits."""

    def __init__(self, limits: LimitSettings, recorder: Recorder) -> None:
        self._limits = limits
        self._recorder = recorder
        self._by_tenant: dict[str, int] = {}
        self.requests = 0
        self.body_bytes = 0

    def too_large(self) -> Refusal:
        """The refusal of a body that is larger than any may be."""
        self._recorder.refused("body_bytes")
        limit = self._limits.body_bytes_max
        return Refusal(413, f"The body is larger than {limit} bytes.", code="body_too_large", close=True)

    def hold_body(self, request: Request, count: int) -> None:
        """Takes account of bytes of a body that came.

        :raises Refusal: if they are too many, of this request or of all.
        """
        limits = self._limits
        if request.body_bytes > limits.body_bytes_max:
            request.body_bytes -= count
            raise self.too_large()
        if self.body_bytes + count > limits.bodies_bytes_max:
            request.body_bytes -= count
            self._recorder.refused("bodies_bytes")
            raise Refusal(503, "Too many request bodies are held now.", retry_after_seconds=1, close=True)
        self.body_bytes += count

    def release_body(self, request: Request) -> None:
        """A body is no longer held."""
        if request.refusal is None or request.pieces or request.body:
            self.body_bytes -= request.body_bytes
            request.body_bytes = 0
        request.pieces = []
        request.body = b""

    def check(self, tenant: str) -> None:
        """Whether one more request of a tenant may begin.

        :raises Refusal: if not.
        """
        limits = self._limits
        if self.requests >= limits.requests_max:
            self._recorder.refused("requests")
            raise Refusal(429, "Too many requests are under way.", code="rate_limit_exceeded", retry_after_seconds=1)
        if self._by_tenant.get(tenant, 0) >= limits.tenant_requests_max:
            self._recorder.refused("tenant_requests")
            message = "Too many requests of this tenant are under way."
            raise Refusal(429, message, code="rate_limit_exceeded", retry_after_seconds=1)

    def begin(self, tenant: str) -> None:
        """A request of a tenant is under way."""
        self.requests += 1
        self._by_tenant[tenant] = self._by_tenant.get(tenant, 0) + 1

    def end(self, tenant: str) -> None:
        """It is no longer."""
        self.requests -= 1
        left = self._by_tenant.get(tenant, 1) - 1
        if left > 0:
            self._by_tenant[tenant] = left
        else:
            self._by_tenant.pop(tenant, None)
