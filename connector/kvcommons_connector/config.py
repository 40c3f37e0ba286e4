"""Settings of the connector: what a user may write into `kv_connector_extra_config`, checked once at start."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from kvcommons_core import limits
from kvcommons_core.errors import ConfigurationError, UnknownSettingError

SOCKET_ENVIRONMENT: Final = "KVCOMMONS_SOCKET"
SOCKET_DEFAULT: Final = "/run/kvcommons/node.sock"
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path, less its terminator

_UNITS: Final = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """Each field is a key of `kv_connector_extra_config`."""

    socket: str = ""
    """Path of the cache node's socket. Default: $KVCOMMONS_SOCKET, else /run/kvcommons/node.sock."""
    size: int = 0
    """Bytes ("2GiB") of a private cache that starts and ends with this engine. 0: use the node at `socket`."""
    chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT
    """Tokens a chunk; a multiple of the engine's block size, and the same in every engine that shares a cache."""
    load: bool = True
    """False: store only."""
    store: bool = True
    """False: load only."""
    lookup_ms_max: int = 50
    """A lookup that takes longer counts as a miss, and the node as away until it is attached again."""
    call_ms_max: int = 250
    """The same for a worker's calls (begin, reserve, commit)."""
    load_ms_max: int = 10_000
    """A load that has not ended by then has failed: its tokens are recomputed."""
    lease_ms_max: int = 10_000
    """A lease older than this is not used but taken anew. Below the node's own limit (30 s by default)."""
    fetch_ms_max: int = 2_000
    """How long a request may wait for chunks that are on their way from disk or a peer."""
    copy_threads: int = 1
    """Native threads that copy, in each worker."""
    device: str = "auto"
    """"auto": the one that KV lies on, host or GPU. "host", "cuda": that one alone. "stream": KV in the host's memory is copied
    as a GPU's is, by streams of their own, so that this way can be tried."""
    exact: bool = False
    """True: take no KV that a codec changed, even on a node that is set to answer from such."""
    strict: bool = False
    """True: refuse to start where the cache can't be used. False: serve without it, and say why."""

    def __post_init__(self) -> None:
        """Reject what can't work, naming field, value and remedy."""
        if self.socket and self.size:
            raise ConfigurationError(
                "size", self.size, "give either `socket` (a cache node) or `size` (a private cache), not both"
            )
        if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES_MAX:
            raise ConfigurationError("socket", self.socket, f"use a path of at most {SOCKET_PATH_BYTES_MAX} bytes")
        for name in (
            "chunk_tokens",
            "lookup_ms_max",
            "call_ms_max",
            "load_ms_max",
            "lease_ms_max",
            "fetch_ms_max",
            "copy_threads",
        ):
            if getattr(self, name) < 1:
                raise ConfigurationError(name, getattr(self, name), "give a number of at least 1")
        if self.device not in ("auto", "host", "stream", "cuda"):
            raise ConfigurationError("device", self.device, 'give "auto", "host", "stream" or "cuda"')
        if self.chunk_tokens > limits.CHUNK_TOKENS_MAX:
            raise ConfigurationError("chunk_tokens", self.chunk_tokens, f"give at most {limits.CHUNK_TOKENS_MAX}")

    def socket_path(self, environment: Mapping[str, str]) -> str:
        """The node's socket, when no private cache is asked for."""
        return self.socket or environment.get(SOCKET_ENVIRONMENT, "") or SOCKET_DEFAULT


def parse_config(extra: Mapping[str, object]) -> ConnectorConfig:
    """:raises UnknownSettingError: for a key that is not known, naming the nearest one that is.
    :raises ConfigurationError: for a value of the wrong kind or out of range."""
    known = {field.name: field.default for field in fields(ConnectorConfig)}
    values: dict[str, object] = {}
    for name, value in extra.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
            raise UnknownSettingError(f"kv_connector_extra_config.{name}", value, hint)
        values[name] = _converted(name, value, known[name])
    return ConnectorConfig(**values)  # type: ignore[arg-type]  # each value has been converted to its default's type


def _converted(name: str, value: object, default: object) -> object:
    if name == "size":
        return parse_bytes(value)
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ConfigurationError(name, value, "give true or false")
    if isinstance(default, int):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ConfigurationError(name, value, "give a whole number")
    if isinstance(value, str):
        return value
    raise ConfigurationError(name, value, "give a string")


def parse_bytes(value: object) -> int:
    """A size as a number of bytes, or as "2GiB", "512 MB", "1.5Gi"."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", value.upper()) if isinstance(value, str) else None
    if match is None or match[2] not in _UNITS:
        raise ConfigurationError("size", value, 'give bytes, or a string such as "2GiB"')
    return int(float(match[1]) * _UNITS[match[2]])
