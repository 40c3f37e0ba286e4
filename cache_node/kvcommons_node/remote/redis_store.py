"""Redis or Valkey: an object is a value, its ttl the key's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import redis
from kvcommons_core.errors import ConfigurationError
from kvcommons_core.settings_remote import RedisTier, check_redis_url
from kvcommons_core.settings_values import without_password
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as LateError
from redis.retry import Retry

from kvcommons_node.remote.stores import StoreAwayError, StoreFullError, StoreRefusedError

REMOVED_AT_ONCE: Final = 500


class RedisStore:
    """See Store. Values go out from the bytes that the core made, and come back as the client's parser made them."""

    def __init__(self, settings: RedisTier) -> None:
        """:raises ConfigurationError: if a file cannot be read or holds no URL."""
        url = settings.url or _read("url_file", settings.url_file)
        try:
            check_redis_url(url)
        except ValueError as error:
            raise ConfigurationError("node.tiers: url_file", settings.url_file, str(error)) from error
        self._shown = without_password(url)
        options: dict[str, Any] = {
            "socket_timeout": settings.time_out_ms / 1_000,
            "socket_connect_timeout": settings.time_out_ms / 1_000,
            "retry": Retry(NoBackoff(), 0),  # the core knows better when to try again
            "max_connections": settings.connections,
            "protocol": 2,
        }
        if settings.username:
            options["username"] = settings.username
        if settings.password_file:
            options["password"] = _read("password_file", settings.password_file)
        if url.startswith("rediss"):
            files = {"ssl_ca_certs": "tls_ca_file", "ssl_certfile": "tls_cert_file", "ssl_keyfile": "tls_key_file"}
            options |= {name: value for name, field in files.items() if (value := getattr(settings, field))}
        self._client: Any = redis.Redis.from_url(url, **options)

    def put(self, name: str, content: bytes, ttl_ms: int) -> bool:
        with self._translated():
            if self._client.strlen(name) == len(content):
                return False
            self._client.set(name, content, px=ttl_ms)
        return True

    def get(self, name: str) -> bytes | None:
        with self._translated():
            content: bytes | None = self._client.get(name)
        return content

    def sizes(self, names: Sequence[str]) -> list[int]:
        with self._translated():
            pipe = self._client.pipeline(transaction=False)
            for name in names:
                pipe.strlen(name)
            return [int(size) for size in pipe.execute()]

    def remove(self, names: Sequence[str]) -> None:
        with self._translated():
            self._client.unlink(*names)

    def clear(self, prefix: str, seconds_max: float) -> None:
        deadline = time.monotonic() + seconds_max
        with self._translated():
            names: list[bytes] = []
            for name in self._client.scan_iter(match=f"{prefix}*", count=1_000):
                names.append(name)
                if len(names) == REMOVED_AT_ONCE:
                    self._client.unlink(*names)
                    names = []
                    if time.monotonic() > deadline:
                        raise StoreRefusedError(f"{self._shown}: clearing took longer than {seconds_max:.0f} s")
            if names:
                self._client.unlink(*names)

    def ping(self) -> None:
        with self._translated():
            self._client.ping()

    def close(self) -> None:
        with suppress(RedisError, OSError):
            self._client.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OutOfMemoryError as error:
            raise StoreFullError(f"{self._shown}: {error}") from error
        except (LostConnectionError, LateError, OSError) as error:
            raise StoreAwayError(f"{self._shown}: {error}") from error
        except RedisError as error:
            raise StoreRefusedError(f"{self._shown}: {error}") from error


def _read(field: str, file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"node.tiers: {field}", file, f"make it a readable text file ({error})") from error
