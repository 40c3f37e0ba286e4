"""Settings of stores that nodes share: entries of `node.tiers` with the type redis or s3."""

from __future__ import annotations

from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from kvcommons_core.settings_values import Bytes, Section, without_password

REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
ASK_KEYS_OF_REDIS: Final = 256
"""One pipeline."""
ASK_KEYS_OF_S3: Final = 8
"""Each is a request of its own: a few one after the other, so that all connections have some."""


class RemoteTier(Section):
    """What every shared store has."""

    prefix: str = Field(default="kvc/", min_length=1, max_length=256, pattern=r"^[A-Za-z0-9._/:-]+$")
    """All objects' names begin with it; nodes that share a store give the same."""
    capacity_bytes: Bytes = Field(ge=1 << 20)
    """What this node puts there at most in one life; its oldest goes for what is new."""
    ttl_seconds: int = Field(default=86_400, ge=1, le=366 * 86_400)
    """An object is a hit for so long after it was put, and no longer."""
    time_out_ms: int = Field(default=1_000, ge=10, le=60_000)
    """Of one read or question, waiting included, and of one write; after that the store is left alone for a while."""
    connections: int = Field(default=4, ge=1, le=64)
    """Reads and writes at one time."""
    queue_bytes_max: Bytes = Field(default=256 << 20, ge=1 << 20)
    """Of writes that may wait, and of reads."""
    known_shards_max: int = Field(default=1 << 20, ge=1_024)
    """What is remembered of the store, at about 400 bytes each; what is forgotten is asked for again."""
    ask_wait_ms: int = Field(default=50, ge=1, le=10_000)
    """A lookup waits at most so long to hear whether the store has what nothing nearer has."""


class RedisTier(RemoteTier):
    """A Redis or Valkey server that keeps chunks as values. It need not be the index, and had better not be."""

    type: Literal["redis"]
    """What kind of tier this is."""
    url: str = ""
    """redis://HOST:PORT/DB, rediss:// or unix:///PATH, without a password."""
    url_file: str = ""
    """A file whose content is the URL, which then may have a password in it."""
    username: str = ""
    """Of the server's ACL; its default user when empty."""
    password_file: str = ""
    """A file whose content is the password."""
    tls_ca_file: str = ""
    """Authorities (PEM) that the server's certificate must be signed by; the system's when empty."""
    tls_cert_file: str = ""
    """The own certificate (PEM), where the server asks for one."""
    tls_key_file: str = ""
    """Its private key (PEM)."""

    @model_validator(mode="after")
    def _addressed(self) -> Self:
        if bool(self.url) == bool(self.url_file):
            raise ValueError("give one of url and url_file")
        if self.url:
            check_redis_url(self.url)
            if "@" in self.url.partition("://")[2].partition("/")[0]:
                raise ValueError("url must hold no credentials: give username and password_file, or url_file")
        return self


class S3Tier(RemoteTier):
    """A bucket of an S3-compatible store. Needs the extra `s3`."""

    prefix: str = Field(default="kvc/", max_length=256, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*/)+$")
    """All objects' names begin with it: folders, with a slash at the end; nodes that share a bucket give the same."""
    type: Literal["s3"]
    """What kind of tier this is."""
    bucket: str = Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")
    """Its name; it must exist."""
    endpoint: str = Field(default="", max_length=512, pattern=r"^(https?://[^\s/@]+)?$")
    """URL of the store; Amazon's when empty."""
    region: str = Field(default="", max_length=64, pattern=r"^[a-z0-9-]*$")
    """Region of the bucket."""
    access_key_id_file: str = ""
    """A file whose content is the key's id; when empty, the environment, the SDK's own files or the pod's identity say."""
    secret_access_key_file: str = ""
    """A file whose content is the secret key."""
    tls_ca_file: str = ""
    """Authorities (PEM) that the store's certificate must be signed by; the system's when empty."""
    time_out_ms: int = Field(default=2_000, ge=10, le=60_000)
    """Of one read or question, waiting included, and of one write; after that the store is left alone for a while."""
    connections: int = Field(default=8, ge=1, le=64)
    """Reads and writes at one time."""
    ttl_seconds: int = Field(default=7 * 86_400, ge=1, le=366 * 86_400)
    """An object is a hit for so long after it was put. The bucket needs a lifecycle rule that removes older ones."""
    ask_wait_ms: int = Field(default=200, ge=1, le=10_000)
    """A lookup waits at most so long to hear whether the store has what nothing nearer has."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if bool(self.access_key_id_file) != bool(self.secret_access_key_file):
            raise ValueError("give both of access_key_id_file and secret_access_key_file, or neither")
        return self


def check_redis_url(url: str) -> None:
    """:raises ValueError: with what is wrong; the address is shown without its credentials."""
    scheme = url.partition("://")[0]
    if scheme not in REDIS_SCHEMES:
        shown = without_password(url)
        raise ValueError(f"{shown} must begin with one of {', '.join(f'{one}://' for one in REDIS_SCHEMES)}")
    try:
        _ = urlsplit(url).port if scheme != "unix" else None
    except ValueError:
        raise ValueError("the URL's port must be a number from 1 to 65535") from None


def core_values(tier: RedisTier | S3Tier) -> dict[str, object]:
    """What the native core is told of it."""
    shared = ("prefix", "capacity_bytes", "time_out_ms", "connections", "queue_bytes_max", "known_shards_max")
    return {
        "name": tier.type,
        "ttl_ms": tier.ttl_seconds * 1_000,
        "ask_wait_ms": tier.ask_wait_ms,
        "ask_keys_max": ASK_KEYS_OF_REDIS if tier.type == "redis" else ASK_KEYS_OF_S3,
        **{name: getattr(tier, name) for name in shared},
    }
