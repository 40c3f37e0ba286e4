"""API keys, tenants and their salts. Keys are compared by hash; a changed file is read again, a broken one is not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvcommons_router.errors import Refusal
from kvcommons_router.quotas import Allowance

SECRET_BYTES_MIN = 16
KEYS_FILE_BYTES_MAX = 16 * 1024 * 1024
DEFAULT_TENANT = "default"


class KeyEntry(BaseModel):
    """One API key of a tenant: in the clear, or (better) as the hex of its SHA-256."""

    model_config = ConfigDict(extra="forbid")
    tenant: str = Field(min_length=1, max_length=128)
    key: str | None = Field(default=None, min_length=8)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    weight: float = Field(default=1.0, ge=0.01, le=100)
    """Its share while requests wait, against other tenants'; the same in all entries of a tenant."""
    requests_per_minute: int = Field(default=0, ge=0)
    """0 for no limit; the same in all entries of a tenant."""
    tokens_per_minute: int = Field(default=0, ge=0)
    """Of its prompts, as the router estimates them; 0 for no limit."""

    @model_validator(mode="after")
    def _one(self) -> KeyEntry:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give exactly one of `key` and `sha256`")
        return self

    def digest(self) -> bytes:
        """What the presented key's SHA-256 must be."""
        return bytes.fromhex(self.sha256) if self.sha256 is not None else hashlib.sha256(_utf8(self.key)).digest()


class KeysFile(BaseModel):
    """The file named by `api_keys`: JSON, `{"keys": [{"tenant": ..., "sha256": ...}]}`."""

    model_config = ConfigDict(extra="forbid")
    keys: list[KeyEntry] = Field(max_length=100_000)


class KeysError(Exception):
    """The API key file can't be used; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks, and the salt that keeps its KV apart; None where there is a single tenant and no keys."""

    name: str
    salt: str | None
    weight: float = 1.0
    allowance: Allowance | None = None
    """What it may ask for in a minute; None for as much as it likes."""


def _utf8(text: str | None) -> bytes:
    return (text or "").encode("utf-8")


def salt_of(secret: bytes, tenant: str) -> str:
    """The salt that engines see: it can't be made without the router's secret."""
    return hmac.new(secret, tenant.encode("utf-8"), hashlib.sha256).hexdigest()


def read_keys(path: Path, secret: bytes) -> dict[bytes, Tenant]:
    """SHA-256 of a key -> its tenant.

    :raises KeysError: if the file can't be read, is not as described, or gives one key to two tenants.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(KEYS_FILE_BYTES_MAX + 1)
        if len(raw) > KEYS_FILE_BYTES_MAX:
            raise KeysError(f"{path} is larger than {KEYS_FILE_BYTES_MAX} bytes")
        entries = KeysFile.model_validate(orjson.loads(raw)).keys
    except OSError as error:
        raise KeysError(f"{path} can't be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise KeysError(f"{path} is not JSON: {error.msg} at line {error.lineno}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KeysError(f"{path}: {where}: {first['msg']}") from error
    tenants: dict[str, Tenant] = {}
    found: dict[bytes, Tenant] = {}
    for entry in entries:
        salt = salt_of(secret, entry.tenant)
        limited = entry.requests_per_minute or entry.tokens_per_minute
        allowance = Allowance(entry.requests_per_minute, entry.tokens_per_minute) if limited else None
        tenant = tenants.setdefault(entry.tenant, Tenant(entry.tenant, salt, entry.weight, allowance))
        if tenant.weight != entry.weight:
            raise KeysError(f"{path}: {entry.tenant} has two weights: write the same one in all of its entries")
        if tenant.allowance != allowance:
            raise KeysError(f"{path}: {entry.tenant} has two limits a minute: write the same in all of its entries")
        if found.setdefault(entry.digest(), tenant) is not tenant:
            raise KeysError(f"{path}: one key is given to two tenants ({entry.tenant} is the second)")
    return found


class Authenticator:
    """Answers whose request this is. Without a keys file everyone is the one tenant, unsalted."""

    def __init__(self, path: Path | None, secret: bytes) -> None:
        self._path = path
        self._secret = secret
        self._everyone = Tenant(DEFAULT_TENANT, None)
        self.epoch = 0
        self._stamp = self._stat()
        self._keys: Mapping[bytes, Tenant] = read_keys(path, secret) if path is not None else {}

    @property
    def enabled(self) -> bool:
        """Whether a key is needed at all."""
        return self._path is not None

    def _stat(self) -> tuple[int, int, int]:
        if self._path is None:
            return (0, 0, 0)
        try:
            stat = os.stat(self._path)
        except OSError:
            return (0, 0, 0)
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def reload_if_changed(self) -> bool:
        """Reads the file again if it changed; whether it did.

        :raises KeysError: if the new file can't be used; the keys read before stay in force.
        """
        if self._path is None:
            return False
        stamp = self._stat()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self._keys = read_keys(self._path, self._secret)
        self.epoch += 1
        return True

    def tenant(self, authorization: bytes | None) -> Tenant:
        """The tenant of an Authorization header's value.

        :raises Refusal: if a key is needed and this is none.
        """
        if self._path is None:
            return self._everyone
        if authorization is None:
            raise Refusal(401, "An API key is needed: Authorization: Bearer KEY.", code="invalid_api_key")
        scheme, _, key = authorization.partition(b" ")
        tenant = self._keys.get(hashlib.sha256(key.strip()).digest())
        if tenant is None or scheme.lower() != b"bearer":
            raise Refusal(401, "The API key is not known here.", code="invalid_api_key")
        return tenant


def read_secret(path: Path) -> bytes:
    """The router's secret from a file.

    :raises KeysError: if it is absent or too short to be one.
    """
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise KeysError(f"the secret {path} can't be read: {error.strerror}") from error
    if len(secret) < SECRET_BYTES_MIN:
        raise KeysError(f"the secret {path} has {len(secret)} bytes; at least {SECRET_BYTES_MIN} are needed")
    return secret


def read_or_make_secret(path: Path) -> bytes:
    """The router's secret, made once (mode 0600) if the file is absent: salts must outlive a restart."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        return read_secret(path)
    except KeysError:
        if path.exists():
            raise
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)  # atomic: of two routers that start at once, one wins and both read the same
    finally:
        os.unlink(fresh)
    return read_secret(path)
