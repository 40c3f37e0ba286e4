"""Errors of kvcommons. The class says what the caller must do; the message names the field, its value and the remedy."""

from __future__ import annotations


class KvCommonsError(Exception):
    """Base of every error that kvcommons raises on purpose. Anything else that escapes is a defect of kvcommons."""


class ConfigurationError(KvCommonsError, ValueError):
    """A person must change a setting; retrying the same is useless."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(f"{field}: {_shown(value)}: {remedy}")


class UnknownSettingError(ConfigurationError):
    """A setting's name is not known; the message names the nearest one that is."""


class IdentityError(ConfigurationError):
    """What the KV bytes depend on is not known exactly, so nothing may be cached. The caller runs without the cache or stops."""


class NotCacheableError(KvCommonsError):
    """This one request can't be named by keys (prompt embeddings, a missing salt). The caller serves it uncached and counts `reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")


class LimitExceededError(KvCommonsError, ValueError):
    """An input is over a fixed bound. The caller refuses it or splits it."""

    def __init__(self, what: str, value: int, limit: int, remedy: str) -> None:
        self.what = what
        self.value = value
        self.limit = limit
        super().__init__(f"{what}: {value} is over the limit of {limit}: {remedy}")


class UnavailableError(KvCommonsError):
    """A service is away for now. The caller goes on without it and tries again later."""


class IndexUnavailableError(UnavailableError):
    """Redis does not answer. Nodes serve locally and routers pick without the index until it is back."""


class NativeMissingError(KvCommonsError, ImportError):
    """The compiled part is not installed. The caller installs a wheel with it, or uses the pure-Python path where there is one."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} needs kvcommons_core._native, which this installation lacks: build it with `make build` or install a binary wheel"
        )


class CorruptRecordError(KvCommonsError):
    """Stored bytes are not what was written. The caller drops the record and counts it."""


class StartRefusedError(KvCommonsError):
    """A process can't start as configured on this machine; the message says what is in the way and the remedy."""


def _shown(value: object, chars_max: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."
