"""An S3-compatible bucket, by obstore (the extra `s3`). Ages are in the objects' headers; a lifecycle rule removes old ones."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from kvcommons_core.errors import ConfigurationError, StartRefusedError
from kvcommons_core.settings_remote import S3Tier

from kvcommons_node.remote.stores import StoreAwayError, StoreFullError, StoreRefusedError

FULL: Final = re.compile(r"507 Insufficient Storage|<Code>(QuotaExceeded|XMinioStorageFull|InsufficientStorage)")
ANSWERED: Final = re.compile(r"non-2xx status code: (\d{3} [\w -]+)(?:.*?<Code>(\w+))?", re.DOTALL)
LISTED_AT_ONCE: Final = 1_000
WHY_CHARACTERS_MAX: Final = 200


class S3Store:
    """See Store. What is read comes back in the client's own memory, by the buffer protocol."""

    def __init__(self, settings: S3Tier) -> None:
        """:raises ConfigurationError: if a file cannot be read. :raises StartRefusedError: without the client library."""
        try:
            self._library: Any = importlib.import_module("obstore")
            kinds: Any = importlib.import_module("obstore.store")
            self._errors: Any = importlib.import_module("obstore.exceptions")
        except ImportError as error:
            raise StartRefusedError(
                "node.tiers: a tier of type s3 needs obstore; install kvcommons with its extra: pip install 'kvcommons[s3]'"
            ) from error
        self._shown = f"{settings.endpoint or 's3'}/{settings.bucket}"
        self._prefix = settings.prefix
        limit = timedelta(milliseconds=settings.time_out_ms)
        client: dict[str, Any] = {"timeout": limit, "connect_timeout": limit, "allow_http": True}
        if settings.tls_ca_file:
            client["root_certificate"] = _read("tls_ca_file", settings.tls_ca_file)
        self._store: Any = kinds.S3Store(
            settings.bucket,
            client_options=client,
            retry_config={"max_retries": 0, "retry_timeout": limit},  # the core knows better when to try again
            **_config(settings),
        )

    def put(self, name: str, content: bytes, ttl_ms: int) -> bool:
        if self._size(name) == len(content):
            return False
        with self._translated():
            self._library.put(self._store, name, content, use_multipart=False)
        return True

    def get(self, name: str) -> memoryview | None:
        with self._translated():
            try:
                return memoryview(self._library.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def sizes(self, names: Sequence[str]) -> list[int]:
        return [self._size(name) for name in names]

    def remove(self, names: Sequence[str]) -> None:
        with self._translated():
            self._library.delete(self._store, list(names))

    def clear(self, prefix: str, seconds_max: float) -> None:
        deadline = time.monotonic() + seconds_max
        with self._translated():
            for page in self._library.list(self._store, prefix=prefix, chunk_size=LISTED_AT_ONCE):
                self._library.delete(self._store, [item["path"] for item in page])
                if time.monotonic() > deadline:
                    raise StoreRefusedError(f"{self._shown}: clearing took longer than {seconds_max:.0f} s")

    def ping(self) -> None:
        """Asks for an object that nobody has: the answer says that the bucket is there and may be read."""
        self._size(f"{self._prefix}ping")

    def close(self) -> None:
        """The client has nothing to close."""

    def _size(self, name: str) -> int:
        with self._translated():
            try:
                return int(self._library.head(self._store, name)["size"])
            except FileNotFoundError:
                return 0

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError) as error:
            raise StoreRefusedError(f"{self._shown}: {_short(error)}") from error
        except FileNotFoundError as error:
            raise StoreRefusedError(f"{self._shown}: there is no such bucket") from error
        except self._errors.BaseError as error:
            text = str(error)
            if FULL.search(text):
                raise StoreFullError(f"{self._shown}: {_short(error)}") from error
            kind = StoreRefusedError if ANSWERED.search(text) else StoreAwayError
            raise kind(f"{self._shown}: {_short(error)}") from error


def _config(settings: S3Tier) -> dict[str, Any]:
    """Of what is left out, the environment and the pod's identity say more."""
    config: dict[str, Any] = {"region": settings.region or "us-east-1"} if settings.endpoint or settings.region else {}
    if settings.endpoint:
        config |= {"endpoint": settings.endpoint, "disable_bulk_delete": True}  # which not every store has
    else:
        config["virtual_hosted_style_request"] = True
    if settings.access_key_id_file:
        config["access_key_id"] = _read("access_key_id_file", settings.access_key_id_file)
        config["secret_access_key"] = _read("secret_access_key_file", settings.secret_access_key_file)
    return config


def _short(error: Exception) -> str:
    """What the store said, without the request that it said it to."""
    text = str(error)
    answered = ANSWERED.search(text)
    if answered:
        return " ".join(part for part in answered.groups() if part)
    return " ".join(text.partition("Debug source")[0].rpartition(" - ")[2].split())[:WHY_CHARACTERS_MAX]


def _read(field: str, file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"node.tiers: {field}", file, f"make it a readable text file ({error})") from error
