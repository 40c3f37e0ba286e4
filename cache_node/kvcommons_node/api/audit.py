"""Who changed what through the control API: one line each, in a log of its own name."""

from __future__ import annotations

import logging

from aiohttp import web
from pydantic import BaseModel

logger = logging.getLogger("kvcommons.audit")

SECRET_FIELDS = frozenset({"salt", "text"})


def summary(body: BaseModel | None) -> dict[str, object]:
    """What was asked for, without secrets; of a list only how long it is."""
    return _shown(body.model_dump(exclude_none=True, exclude_defaults=True)) if body is not None else {}


def _shown(fields: dict[str, object]) -> dict[str, object]:
    return {name: _short(value) for name, value in fields.items() if name not in SECRET_FIELDS}


def _short(value: object) -> object:
    """Of a list its length; within a call for all nodes stands the operation's own request."""
    if isinstance(value, dict):
        return _shown(value)
    if isinstance(value, list):
        return len(value)
    return value


def record(operation: str, request: web.Request, body: BaseModel | None, status: int, name: str | None = None) -> None:
    """Refused ones too: they are what one looks for. `name`: of the client's certificate."""
    peer = f"{request.remote} ({name})" if name is not None else request.remote
    logger.info(
        "%s by %s: %d %s",
        operation,
        peer,
        status,
        asked := summary(body),
        extra={"operation": operation, "peer": peer, "status": status, "asked": asked},
    )
