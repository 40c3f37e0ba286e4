"""Errors of the Kubernetes API, by what the caller must do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcommons_core.errors import KvCommonsError

MESSAGE_CHARACTERS_MAX = 600


class KubeError(KvCommonsError):
    """Base: the request was not done. `status` is 0 where no answer came."""

    def __init__(
        self, status: int, reason: str, message: str, what: str, details: Mapping[str, Any] | None = None
    ) -> None:
        self.status = status
        self.reason = reason
        self.message = message[:MESSAGE_CHARACTERS_MAX]
        self.what = what
        self.details = dict(details or {})
        super().__init__(f"{what}: {status or 'no answer'} {reason}: {self.message}")


class NotFoundError(KubeError):
    """The object, its namespace or its API is not there. What to do depends on which was expected."""


class ConflictError(KubeError):
    """The object is another than the caller knew (version, uid, already there): read it again, then decide anew."""


class ExpiredError(KubeError):
    """A resource version or a page is too old: list anew."""


class RejectedError(KubeError):
    """What was sent is wrong: sending it again is useless until a person or a program changes it."""


class ForbiddenError(KubeError):
    """The ServiceAccount may not do this: a person must change a role."""


class UnavailableError(KubeError):
    """The API server is away, too busy or broken: try again later. The client has already tried a bounded number of times."""

    retry_after_seconds: float | None = None


def of_status(status: int, document: Mapping[str, Any], what: str) -> KubeError:
    """The error for an answer's status code and its Status document."""
    reason = str(document.get("reason") or "")
    message = str(document.get("message") or "")
    details = document.get("details") if isinstance(document.get("details"), Mapping) else {}
    return _class_of(status, reason)(status, reason, message, what, details)


def _class_of(status: int, reason: str) -> type[KubeError]:
    match status:
        case 404:
            return NotFoundError
        case 409:
            return ConflictError
        case 410:
            return ExpiredError
        case 401 | 403:
            return ForbiddenError
        case 408 | 425 | 429:
            return UnavailableError
    # Admission plugins and webhooks that are away answer 500: only time helps.
    return UnavailableError if status >= 500 or reason == "ServerTimeout" else RejectedError
