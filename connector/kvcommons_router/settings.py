"""The router's settings: the sections [router] and [index] of a file, the environment, then flags over them.

Every limit has its unit in its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from kvcommons_core.errors import ConfigurationError, UnknownSettingError
from kvcommons_core.settings import Bytes, IndexSettings, Section, load_settings
from kvcommons_core.settings_values import remedy_of
from pydantic import Field, ValidationError, field_validator, model_validator

from kvcommons_router.binding import Binding
from kvcommons_router.picker import Policy
from kvcommons_router.settings_instances import INSTANCES_MAX, InstanceSettings, KubernetesSettings
from kvcommons_router.settings_tracing import TracingSettings

__all__ = ["INSTANCES_MAX", "InstanceSettings", "KubernetesSettings", "RouterSection", "RouterSettings", "load"]


class LimitSettings(Section):
    """What one worker process bears; beyond it clients are told so instead of being kept waiting."""

    connections_max: int = Field(default=10_000, ge=1)
    requests_max: int = Field(default=4_096, ge=1)
    """Requests in flight; more are answered 429."""
    tenant_requests_max: int = Field(default=4_096, ge=1)
    """Requests in flight of one tenant; more are answered 429."""
    body_bytes_max: Bytes = Field(default=16 * 1024 * 1024, ge=1024)
    bodies_bytes_max: Bytes = Field(default=1024 * 1024 * 1024, ge=1024)
    """Bodies held at one time by all requests; more are answered 503."""
    header_bytes_max: Bytes = Field(default=32 * 1024, ge=1024)
    headers_max: int = Field(default=128, ge=8)
    pipelined_max: int = Field(default=16, ge=1)
    header_seconds: float = Field(default=10.0, gt=0)
    """From the first byte of a head to its last."""
    body_seconds: float = Field(default=60.0, gt=0)
    """From the end of a head to the end of its body."""
    idle_seconds: float = Field(default=75.0, gt=0)
    """A connection with nothing under way is closed after this."""
    stalled_client_seconds: float = Field(default=60.0, gt=0)
    """A client that takes nothing of its answer for this long has left."""
    connect_seconds: float = Field(default=2.0, gt=0)
    first_byte_seconds: float = Field(default=600.0, gt=0)
    between_bytes_seconds: float = Field(default=300.0, gt=0)
    attempts_max: int = Field(default=3, ge=1, le=16)
    """Instances tried for one request, all of them before the first byte of an answer."""
    pool_idle_max: int = Field(default=256, ge=0)
    """Idle connections kept to one instance."""
    pool_idle_seconds: float = Field(default=4.0, gt=0)
    """Engines close theirs after 5 seconds; a request must not meet that."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.body_bytes_max > self.bodies_bytes_max:
            raise ValueError("body_bytes_max is over bodies_bytes_max: a body of that size could never be held")
        return self


class HealthSettings(Section):
    """When an instance is out, and when it is asked again."""

    interval_seconds: float = Field(default=2.0, gt=0)
    timeout_seconds: float = Field(default=2.0, gt=0)
    failures_max: int = Field(default=2, ge=1)
    """Checks failed in a row before it counts as down."""
    errors_max: int = Field(default=3, ge=1)
    """Requests failed in a row before it is left out for a while."""
    eject_seconds: float = Field(default=1.0, gt=0)
    """The first such while; it doubles."""
    eject_seconds_max: float = Field(default=30.0, gt=0)


class CostSettings(Section):
    """The parts of the score that are not learnt."""

    engine_credit: float = Field(default=1.0, ge=0, le=1)
    memory_credit: float = Field(default=0.95, ge=0, le=1)
    disk_credit: float = Field(default=0.8, ge=0, le=1)
    peer_credit: float = Field(default=0.7, ge=0, le=1)
    decode_seconds: float = Field(default=0.004, ge=0)
    base_seconds: float = Field(default=0.02, ge=0)
    """Where learning the time to prefill begins."""
    token_seconds: float = Field(default=0.0002, gt=0)
    adapter_seconds: float = Field(default=0.2, ge=0)
    """What it takes a replica to load a LoRA adapter that it has not used lately."""


class QueueSettings(Section):
    """How requests wait in the router while every replica that they should go to has enough to prefill."""

    enabled: bool = True
    """Whether they do; else each is sent on at once. Only the policy `cost` knows how to."""
    window_seconds: float = Field(default=0.1, gt=0)
    """A replica with less than this to prefill gets another request."""
    window_tokens: int = Field(default=2048, ge=1)
    """And so does one with fewer tokens to prefill."""
    target_seconds: float = Field(default=8.0, gt=0)
    """Within which a first byte should come: a request goes first shortly before it would miss that."""
    ageing: float = Field(default=10.0, ge=0, le=1000)
    """How many seconds of waiting make up for one second more of prefill."""
    priority_seconds: float = Field(default=2.0, ge=0)
    """The head start that each step of `X-Kvcommons-Priority` gives."""
    requests_max: int = Field(default=1024, ge=1)
    """Who waits for one model in one worker; more are answered 429."""
    seconds_max: float = Field(default=120.0, gt=0)
    """Who waits longer is answered 429."""

    def binding(self) -> Binding:
        """The same, as the binder takes it."""
        return Binding(
            window_seconds=self.window_seconds,
            window_tokens=self.window_tokens,
            ageing=self.ageing,
            target_seconds=self.target_seconds,
            priority_seconds=self.priority_seconds,
            requests_max=self.requests_max,
        )


class RouterSection(Section):
    """The router itself."""

    listen: str = "127.0.0.1:8000"
    workers: int = Field(default=1, ge=1, le=256)
    instances: Annotated[tuple[InstanceSettings, ...], Field(max_length=INSTANCES_MAX)] = ()
    """The engines that are listed; read again when the file changes."""
    kubernetes: KubernetesSettings | None = None
    """Where more of them are found."""
    policy: Policy = Policy.COST
    api_keys: Path | None = None
    """A file of API keys; without it everyone may ask, as one tenant."""
    salt_secret: Path | None = None
    """What tenants' salts are made with; the same on all routers of a pool, and kept over restarts."""
    state_directory: Path = Path("~/.local/state/kvcommons/router")
    transfer_params: bool = True
    """Whether requests carry their text keys for the connector."""
    tls_certificate: Path | None = None
    """A PEM chain; with it and its key clients come by TLS, and by nothing else. Changed files are read again."""
    tls_key: Path | None = None
    engine_ca: Path | None = None
    """Whose certificates engines with https:// show, in PEM; without it the machine's own authorities."""
    forward_paths: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Paths that only engines know and that clients may ask for, such as /v1/rerank; a `*` at the end stands for any end."""
    access_log: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_delay_seconds: float = Field(default=0.0, ge=0)
    """After SIGTERM: how long to answer as before, but unhealthy, so that load balancers take us out."""
    drain_seconds: float = Field(default=120.0, ge=0)
    """Then: how long requests under way may take to end."""
    limits: LimitSettings = LimitSettings()
    health: HealthSettings = HealthSettings()
    cost: CostSettings = CostSettings()
    queue: QueueSettings = QueueSettings()
    tracing: TracingSettings = TracingSettings()

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("give HOST:PORT; a port is 0 (any that is free) to 65535")
        return value

    @field_validator("forward_paths")
    @classmethod
    def _forward_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            if not path.startswith("/") or "*" in path[:-1] or not path.isascii():
                raise ValueError(f"{path!r} is no path: begin it with /, with a * at most as its last character")
        return value

    @model_validator(mode="after")
    def _tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both or none")
        return self

    @property
    def host(self) -> str:
        """The address to listen on."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on; 0 takes a free one."""
        return int(self.listen.rpartition(":")[2])


class RouterSettings(Section):
    """Everything `kvcommons router` can be told."""

    router: RouterSection = RouterSection()
    index: IndexSettings = IndexSettings()


def parse_instance(text: str) -> dict[str, object]:
    """`name=a,url=http://h:1,model=m,node=n` as a mapping; several `models` are written with `+` between them.

    :raises ConfigurationError: if a part is not KEY=VALUE or a key is unknown.
    """
    found: dict[str, object] = {}
    known = list(InstanceSettings.model_fields)
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            raise ConfigurationError("--instance", part, "write it as KEY=VALUE,KEY=VALUE")
        if key not in known:
            raise UnknownSettingError("--instance", key, f"there is no such key; known: {', '.join(known)}")
        found[key] = tuple(value.split("+")) if key == "models" else value
    return found


def load(
    file: Path | None, environ: Mapping[str, str], values: Mapping[str, object], index: Mapping[str, object]
) -> RouterSettings:
    """The settings of all sources; `values` and `index`, from flags, stand over the rest.

    :raises ConfigurationError: naming the setting, its value and the remedy.
    """
    read = load_settings(RouterSettings, file=file, environ=environ)
    merged = {
        "router": read.router.model_dump(exclude_unset=True) | dict(values),
        "index": read.index.model_dump(exclude_unset=True) | dict(index),
    }
    try:
        settings = RouterSettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        value = "(not shown)" if isinstance(first["input"], dict) else first["input"]
        raise ConfigurationError(where, value, remedy_of(first)) from error
    _check_instances(settings.router)
    return _with_api_server(settings, environ)


def _with_api_server(settings: RouterSettings, environ: Mapping[str, str]) -> RouterSettings:
    """Names the API server of the cluster that this runs in, where pods are watched and none is named."""
    kubernetes = settings.router.kubernetes
    if kubernetes is None or kubernetes.api:
        return settings
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        remedy = "this does not run in a cluster: name its API server, https://HOST:PORT"
        raise ConfigurationError("router.kubernetes.api", "", remedy)
    api = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    router = settings.router.model_copy(update={"kubernetes": kubernetes.model_copy(update={"api": api})})
    return settings.model_copy(update={"router": router})


def _check_instances(router: RouterSection) -> None:
    if not router.instances and router.kubernetes is None:
        remedy = "give at least one: --instance, or [[router.instances]] or [router.kubernetes] in the file"
        raise ConfigurationError("router.instances", "", remedy)
    seen: dict[str, int] = {}
    for at, instance in enumerate(router.instances):
        first = seen.setdefault(instance.name, at)
        if first != at:
            remedy = f"router.instances.{first} has this name already: give each one its own"
            raise ConfigurationError(f"router.instances.{at}.name", instance.name, remedy)


def secret_path(settings: RouterSection) -> Path:
    """Where the secret of the salts is, or is to be made."""
    if settings.salt_secret is not None:
        return settings.salt_secret
    return Path(os.path.expanduser(settings.state_directory)) / "salt.secret"
