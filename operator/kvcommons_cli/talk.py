"""HTTP to the parts of a local stack, by the standard library: JSON calls, counters, and completions with their times."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

CALL_SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 16 << 20
COMPLETION_SECONDS_MAX = 240.0
JSON = {"Content-Type": "application/json"}


class TalkError(Exception):
    """A call failed. ``status`` is the HTTP status, 0 where there was no answer."""

    def __init__(self, url: str, status: int, message: str) -> None:
        super().__init__(f"{url}: {message}" if status == 0 else f"{url}: status {status}: {message}")
        self.status = status
        self.detail = message


@dataclass(frozen=True)
class Completion:
    """One streamed answer, as the client saw it."""

    text: str
    ttft_seconds: float
    total_seconds: float
    prompt_tokens: int
    cached_tokens: int
    """usage.prompt_tokens_details.cached_tokens: what the engine says it did not compute, from whichever cache."""
    headers: Mapping[str, str]


def call(
    method: str,
    url: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    seconds_max: float = CALL_SECONDS_MAX,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """One request. :raises TalkError: without an answer, or if it is not 2xx."""
    with _request(method, url, body, headers or {}, seconds_max, tls) as response:
        content = response.read(ANSWER_BYTES_MAX)
    return content


def call_json(
    method: str,
    url: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    seconds_max: float = CALL_SECONDS_MAX,
    tls: ssl.SSLContext | None = None,
) -> dict[str, object]:
    """The same, for an answer that is a JSON object."""
    content = call(method, url, body, headers=headers, seconds_max=seconds_max, tls=tls)
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise TalkError(url, 200, f"the answer is no JSON: {content[:80]!r}") from error
    if not isinstance(parsed, dict):
        raise TalkError(url, 200, f"the answer is no JSON object: {content[:80]!r}")
    return parsed


def lines(
    method: str, url: str, headers: Mapping[str, str], idle_seconds_max: float, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """The lines of an answer that goes on. :raises TalkError: if it is refused, or nothing comes for so long."""
    with _request(method, url, None, headers, idle_seconds_max, tls) as response:
        while line := response.readline(ANSWER_BYTES_MAX):
            yield line.decode(errors="replace").rstrip("\r\n")


def answers(url: str) -> bool:
    """Whether a GET is answered with 2xx within a second."""
    try:
        call("GET", url, seconds_max=1.0)
    except TalkError:
        return False
    return True


def counters(url: str) -> dict[str, float]:
    """A Prometheus exposition, summed over labels other than `source`, which stays: name or name{source="..."}."""
    totals: dict[str, float] = {}
    for line in call("GET", url).decode().splitlines():
        if not line or line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        source = next((part for part in labels.rstrip("}").split(",") if part.startswith("source=")), None)
        key = f"{name}{{{source}}}" if source else name
        try:
            totals[key] = totals.get(key, 0.0) + float(value)
        except ValueError:
            continue
    return totals


def complete(
    base_url: str, path: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> Completion:
    """Ask for a streamed completion and time its first token. :raises TalkError: on any failure."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    started = time.monotonic()
    first: float | None = None
    pieces: list[str] = []
    usage: dict[str, object] = {}
    with _request("POST", base_url + path, asked, headers or {}, COMPLETION_SECONDS_MAX) as response:
        answer_headers = {name.lower(): value for name, value in response.getheaders()}
        for event in _events(base_url + path, response):
            piece = _piece(event)
            if piece and first is None:
                first = time.monotonic() - started
            pieces.append(piece)
            if isinstance(event.get("usage"), dict):
                usage = dict(event["usage"])  # type: ignore[call-overload]  # just seen to be a dict
    total = time.monotonic() - started
    if first is None:
        raise TalkError(base_url + path, 200, "the stream ended without a token")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Completion("".join(pieces), first, total, _whole(usage.get("prompt_tokens")), _whole(cached), answer_headers)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _events(url: str, response: http.client.HTTPResponse) -> Iterator[dict[str, object]]:
    for line in response:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise TalkError(url, 200, f"the stream broke off: {event['error']}")
        yield event


def _piece(event: Mapping[str, object]) -> str:
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices:
        return ""
    choice = choices[0]
    text = choice["text"] if "text" in choice else choice.get("delta", {}).get("content")
    return text or ""


@contextmanager
def _request(
    method: str,
    url: str,
    body: object,
    headers: Mapping[str, str],
    seconds_max: float,
    tls: ssl.SSLContext | None = None,
) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, parts.port or 443, timeout=seconds_max, context=tls)
    else:
        connection = http.client.HTTPConnection(host, parts.port or 80, timeout=seconds_max)
    payload = None if body is None else json.dumps(body).encode()
    sent = {**({} if body is None else JSON), **headers}
    target = parts.path or "/"
    try:
        connection.request(method, f"{target}?{parts.query}" if parts.query else target, payload, sent)
        response = connection.getresponse()
        if not 200 <= response.status < 300:
            raise TalkError(url, response.status, response.read(4_096).decode(errors="replace"))
        yield response
    except (OSError, http.client.HTTPException) as error:
        raise TalkError(url, 0, str(error) or type(error).__name__) from error
    finally:
        connection.close()
