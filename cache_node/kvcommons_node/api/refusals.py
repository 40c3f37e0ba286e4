"""Refusals of the control API: every one names what was wrong, where, and the remedy."""

from __future__ import annotations

from aiohttp import web
from pydantic import ValidationError

from kvcommons_node.api.base import HEX_KEY_PATTERN, HEX_START_PATTERN
from kvcommons_node.api.models import ErrorAnswer, ErrorDetail
from kvcommons_node.api.models_pins import NAME_PATTERN
from kvcommons_node.api.models_recode import CODEC_PATTERN
from kvcommons_node.api.models_select import PLACE_PATTERN

PATTERN_WORDS = {
    HEX_KEY_PATTERN: "64 hexadecimal digits",
    HEX_START_PATTERN: "4 to 64 hexadecimal digits",
    PLACE_PATTERN: "a name of letters, digits, _ and - (at most 32, a letter first)",
    CODEC_PATTERN: "lossless, fp8-e4m3, int8, int4, int4:group=64 (a power of two from 8 to 256) or k16v8",
    NAME_PATTERN: "a name of letters, digits and ._:- (at most 128, a letter or digit first)",
}
VALUE_CHARACTERS_MAX = 120
"""A refused value is quoted this far: enough to recognise it, never a whole body."""


class Refusal(Exception):
    """A request that is answered with an error; carries the status and the detail of the answer."""

    def __init__(self, status: int, detail: ErrorDetail, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail.message)
        self.status = status
        self.detail = detail
        self.headers = headers or {}

    def response(self) -> web.Response:
        return web.Response(
            status=self.status,
            text=ErrorAnswer(error=self.detail).model_dump_json(),
            content_type="application/json",
            headers=self.headers,
        )


def invalid(error: ValidationError, within: str = "") -> Refusal:
    """The first thing wrong with a body, as one refusal. `within`: before the names of fields."""
    problems = error.errors(include_url=False)
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"])
    field = within + place if place else within.rstrip(".") or None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message, remedy = f"unknown field '{field}'", "remove it; /openapi.json lists the fields"
    elif first["type"] == "string_pattern_mismatch":
        message = f"it is not {PATTERN_WORDS.get(first['ctx']['pattern'], 'of the right form')}"
        remedy = (
            "`kvcommons stats` lists fingerprints" if field == "fingerprint" else "/openapi.json describes every field"
        )
    elif first["type"] == "json_invalid":
        field, remedy = None, "send one JSON object"
    else:
        remedy = "/openapi.json describes every field"
    value = None if first["type"] in ("missing", "json_invalid") or not first["loc"] else shortened(first["input"])
    return Refusal(
        400, ErrorDetail(type="invalid_request", message=message + more, field=field, value=value, remedy=remedy)
    )


def shortened(value: object) -> str:
    """A value as text, short enough for an error message."""
    text = repr(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 1] + "…"


def of_http(error: web.HTTPException, path: str, known_paths: str) -> Refusal:
    """What the HTTP library refused by itself, in our words."""
    if isinstance(error, web.HTTPNotFound):
        return Refusal(
            404,
            ErrorDetail(
                type="not_found",
                message="no such path",
                field="path",
                value=path[:VALUE_CHARACTERS_MAX],
                remedy=f"known: {known_paths}",
            ),
        )
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Refusal(
            405,
            ErrorDetail(
                type="invalid_request",
                message=f"{error.method} is not what {path[:VALUE_CHARACTERS_MAX]} takes",
                field="method",
                value=error.method,
                remedy=f"use {allowed} {path[:VALUE_CHARACTERS_MAX]}",
            ),
            {"Allow": allowed},
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Refusal(
            413, ErrorDetail(type="too_large", message=error.text or "body too large", remedy="ask for less")
        )
    return Refusal(
        error.status,
        ErrorDetail(type="invalid_request", message=error.reason, remedy="/openapi.json describes the requests"),
    )


def fingerprint_unclear(digits: str, found: list[str]) -> Refusal:
    """:param found: the beginnings of those that it may mean."""
    return Refusal(
        400 if found else 404,
        ErrorDetail(
            type="invalid_request" if found else "not_found",
            message=f"several begin so: {', '.join(found)}" if found else "no fingerprint here begins so",
            field="fingerprint",
            value=digits,
            remedy="give more digits" if found else "GET /v1/stats (`kvcommons stats`) lists them",
        ),
    )


def unauthorized() -> Refusal:
    return Refusal(
        401,
        ErrorDetail(
            type="unauthorized",
            message="the bearer token is missing or wrong",
            field="Authorization",
            remedy="send 'Authorization: Bearer TOKEN' with the content of the node's control_token_file",
        ),
        {"WWW-Authenticate": "Bearer"},
    )


def control_is_closed() -> Refusal:
    return Refusal(
        403,
        ErrorDetail(
            type="forbidden",
            message="the control API listens beyond this machine and has no token, so it is closed",
            remedy="set control_token_file or control_tls_client_ca_file, or listen on 127.0.0.1",
        ),
    )


def no_certificate() -> Refusal:
    return Refusal(
        401,
        ErrorDetail(
            type="unauthorized",
            message="no client certificate was shown",
            remedy="show one that an authority of the node's control_tls_client_ca_file has signed",
        ),
    )


def not_json(content_type: str) -> Refusal:
    return Refusal(
        415,
        ErrorDetail(
            type="invalid_request",
            message="the body must be JSON",
            field="Content-Type",
            value=content_type,
            remedy="send Content-Type: application/json",
        ),
    )


def index_away(error: Exception) -> Refusal:
    """Redis does not answer: another node may reach it."""
    return Refusal(
        503,
        ErrorDetail(type="busy", message=f"the index is not reached: {error}", remedy="ask another node, or try again"),
        {"Retry-After": "1"},
    )


def not_itself(asked: str, node: str) -> Refusal:
    return Refusal(
        409,
        ErrorDetail(
            type="invalid_request",
            message="only the node itself can be held out of the index",
            field="members",
            value=shortened(asked),
            remedy=f"with hold, give no members or [{node!r}]",
        ),
    )


def content_would_go(why: str, remedy: str) -> Refusal:
    """Another size would begin with an empty arena."""
    message = f"what the arena holds would be lost: {why}"
    return Refusal(409, ErrorDetail(type="invalid_request", message=message, field="arena_bytes", remedy=remedy))


def no_such_size(asked: int, why: str) -> Refusal:
    """The machine, or the container's cgroup, does not have so much."""
    detail = ErrorDetail(
        type="invalid_request",
        message=why,
        field="arena_bytes",
        value=str(asked),
        remedy="ask for less, or give it more memory first",
    )
    return Refusal(409, detail)


def nothing_to_pin(chunks: int) -> Refusal:
    """Not even the first chunk is here."""
    short = "" if chunks else ": the text is shorter than one chunk"
    return Refusal(
        404,
        ErrorDetail(
            type="not_found",
            message=f"none of the chain's {chunks} whole chunks is here{short}",
            field="keys",
            remedy="send the text to an engine first (`kvcommons prewarm`), and check fingerprint, salt and chunk_tokens",
        ),
    )


def over_pin_quota(total: int, most: int) -> Refusal:
    return _over_quota(
        f"{total} bytes would be pinned, of {most} at most", "keys", ", pin less, or raise node.pinned_bytes_max"
    )


def too_many_pins(what: str, asked: int, most: int) -> Refusal:
    return _over_quota(f"there would be {asked} {what}, of {most} at most", "name", "")


def _over_quota(message: str, field: str, or_else: str) -> Refusal:
    remedy = f"end other pins (GET /v1/pins lists them){or_else}"
    return Refusal(409, ErrorDetail(type="quota", message=message, field=field, remedy=remedy))


def too_many_watchers(most: int) -> Refusal:
    return Refusal(
        503,
        ErrorDetail(
            type="busy",
            message=f"{most} clients follow the events already",
            remedy="end one of them, or try again later",
        ),
        {"Retry-After": "10"},
    )


def unknown_kinds(asked: str, known: str) -> Refusal:
    return Refusal(
        400,
        ErrorDetail(
            type="invalid_request",
            message="no such kind of event",
            field="kinds",
            value=shortened(asked),
            remedy=f"known: {known}",
        ),
    )


def busy(seconds: int) -> Refusal:
    return Refusal(
        503,
        ErrorDetail(type="busy", message="too many requests at once", remedy=f"try again in {seconds} s"),
        {"Retry-After": str(seconds)},
    )
