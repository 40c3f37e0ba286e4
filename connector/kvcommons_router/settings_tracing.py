"""What the router tells a collector of OpenTelemetry; off unless one is named."""

from __future__ import annotations

from kvcommons_core.settings import Section
from pydantic import Field, field_validator


class TracingSettings(Section):
    """Spans of requests, by OTLP over HTTP."""

    endpoint: str = ""
    """Where they go, with its path: http://collector:4318/v1/traces. Empty: nothing is traced, and clients' `traceparent` is passed on."""
    sample_ratio: float = Field(default=0.01, ge=0, le=1)
    """Of requests whose client has not said whether they are sampled."""
    service_name: str = Field(default="kvcommons-router", min_length=1, max_length=128)
    provider_name: str = Field(default="vllm", min_length=1, max_length=64)
    """`gen_ai.provider.name`: what answers."""
    queue_spans_max: int = Field(default=2048, ge=16, le=1_000_000)
    """Spans that wait to be sent, in one worker; more are dropped."""
    send_seconds: float = Field(default=5.0, gt=0, le=300)
    """How often they are sent."""
    timeout_seconds: float = Field(default=10.0, gt=0, le=300)
    """How long the collector may take to answer."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("give a URL with its path, such as http://collector:4318/v1/traces")
        return value
