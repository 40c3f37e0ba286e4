"""The settings of instances: those that are listed, and those that Kubernetes names."""

from __future__ import annotations

import enum
import ipaddress
import re
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from kvcommons_core.settings import Section, Words
from pydantic import Field, field_validator, model_validator

INSTANCES_MAX: Final = 1024
NAME_CHARACTERS_MAX: Final = 253
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class Role(enum.StrEnum):
    """What an instance does of a request."""

    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"


class InstanceSettings(Section):
    """One engine replica, or one data-parallel rank of it."""

    name: str = Field(max_length=NAME_CHARACTERS_MAX)
    """Its name in metrics, logs and the index."""
    url: str
    """Where its OpenAI API is: http://HOST:PORT, or https://HOST:PORT."""
    model: str | None = None
    """The name that clients ask for."""
    models: Words = Field(default=(), max_length=256)
    """More names that it answers to: LoRA adapters, aliases."""
    node: str = ""
    """The cache node that its connector uses; KV in that node's memory is near to it."""
    zone: str = ""
    """Its failure domain."""
    dp_rank: int | None = Field(default=None, ge=0)
    """The data-parallel rank that this entry stands for; sent as X-Data-Parallel-Rank."""
    api_key: str | None = None
    """What the engine itself asks for, sent instead of the client's key."""
    role: Role = Role.AGGREGATED
    """Whether it does whole requests, or one half of each; only aggregated and decode get requests now."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if _NAME.fullmatch(value) is None:
            raise ValueError("a name has letters, digits, `.`, `_` and `-`, and begins and ends with a letter or digit")
        return value

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError as error:
            raise ValueError("give an engine as http://HOST:PORT; a port is 1 to 65535") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ValueError("give an engine as http://HOST:PORT or https://HOST:PORT, with no path")
        if not value.isascii() or any(char in value for char in "\r\n @"):
            raise ValueError("a URL has no spaces and no user name")
        if port == 0:
            raise ValueError("give an engine as http://HOST:PORT; a port is 1 to 65535")
        return value

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.names:
            raise ValueError(f"instance {self.name} serves no model: give `model`")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Every model name that it answers to."""
        first = (self.model,) if self.model is not None else ()
        return first + tuple(name for name in self.models if name != self.model)

    @property
    def host(self) -> str:
        """The host to connect to."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port to connect to."""
        return urlsplit(self.url).port or (443 if self.https else 80)

    @property
    def https(self) -> bool:
        """Whether it is spoken to by TLS."""
        return self.url.startswith("https:")


class KubernetesSettings(Section):
    """Instances are the pods of a label selector, as long as they are ready."""

    namespace: str = Field(min_length=1, max_length=63)
    """Where the engines' pods are."""
    selector: str = Field(min_length=1, max_length=4096)
    """Their labels, as in `kubectl get pods -l`."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port of their OpenAI API."""
    model: str | None = None
    """The name that clients ask for."""
    models: Words = Field(default=(), max_length=256)
    """More names that they answer to."""
    node_by: Literal["nodeName", "podName"] = "nodeName"
    """How the cache node of a pod is called: as its Kubernetes node, or (a cache node in each pod) as the pod."""
    container: str = "engine"
    """The container whose restarts empty the engine's cache; all of a pod's where it has none of this name."""
    api: str = ""
    """The API server, https://HOST:PORT; that of the cluster that this runs in when empty."""
    token_file: Path = SERVICE_ACCOUNT / "token"
    """The token to show; read again for each request, since it rotates. None is shown where the file is absent."""
    ca_file: Path = SERVICE_ACCOUNT / "ca.crt"
    """Who must have signed the API server's certificate (PEM); the system's authorities where the file is absent."""

    @field_validator("api")
    @classmethod
    def _api(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host = parts.hostname or ""
            _ = parts.port
        except ValueError as error:
            raise ValueError("give https://HOST:PORT; a port is 1 to 65535") from error
        if not value:
            return value
        if parts.scheme not in ("https", "http") or not host or parts.query or "@" in parts.netloc:
            raise ValueError("give https://HOST:PORT")
        if parts.scheme == "http" and not _is_loopback(host):
            raise ValueError("without TLS the token could be read on the way: give https://HOST:PORT")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.names:
            raise ValueError("which model do these pods serve? give `model`")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Every model name that the pods answer to."""
        first = (self.model,) if self.model is not None else ()
        return first + tuple(name for name in self.models if name != self.model)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
