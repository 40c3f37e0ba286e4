"""Send documents through the engines once, so that later requests find their KV: one JSON object a line.

Each line is {"messages": [...]}, as for chat, or {"prompt": "..."}. Later requests reuse what begins with the same
text: a document should stand where those requests will have it, behind the same system prompt."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kvcommons_cli import control, jobs, talk

URL_DEFAULT = "http://127.0.0.1:8000"
AT_ONCE_MAX = 256
LINE_BYTES_MAX = 8 << 20
TRIES = 3
FAILURES_SHOWN_MAX = 5
INTERRUPTED_STATUS = 130
BAR_CHARACTERS = 24


@dataclass(frozen=True)
class Document:
    """One line of the input."""

    line: int
    path: str
    body: dict[str, Any]


@dataclass
class Tally:
    """How far it is."""

    total: int | None
    done: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, usage: dict[str, Any]) -> None:
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        self.done += 1
        self.prompt_tokens += usage["prompt_tokens"] if isinstance(usage.get("prompt_tokens"), int) else 0
        self.cached_tokens += cached if isinstance(cached, int) else 0

    def fail(self, line: int, why: str) -> None:
        self.failed += 1
        if len(self.failures) < FAILURES_SHOWN_MAX:
            self.failures.append(f"line {line}: {why}")

    def words(self) -> str:
        ended = self.done + self.failed
        bar, of = "", str(ended)
        if self.total is not None:
            full = BAR_CHARACTERS * ended // max(1, self.total)
            bar, of = f"[{'#' * full}{'.' * (BAR_CHARACTERS - full)}] ", f"{ended}/{self.total}"
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{bar}{of} documents{failed}, {self.prompt_tokens} tokens, {self.cached_tokens} of them there already"


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)

    def act() -> int:
        if options.job:
            return _as_job(options)
        tally = Tally(_checked(options))
        try:
            with _opened(options.file) as file:
                _send_all(options, _documents(file, options), tally)
        except KeyboardInterrupt:
            # Those that were on their way are sent once more: that costs little, leaving one out would cost more.
            ended = max(0, tally.done + tally.failed - options.at_once)
            sys.stderr.write(f"\nstopped; go on with --skip {options.skip + ended}\n")
            return INTERRUPTED_STATUS
        return _tell(options, tally)

    return control.told("prewarm", act)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvcommons prewarm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="a file of JSON lines; - reads standard input")
    parser.add_argument("--model", required=True, help="as the router's /v1/models lists it")
    parser.add_argument(
        "--url", type=control.address, default=URL_DEFAULT, help=f"of a router, or of an engine (default {URL_DEFAULT})"
    )
    parser.add_argument("--token-file", type=Path, help="file with the tenant's API key, where the router wants one")
    control.add_tls(parser)
    parser.add_argument("--at-once", type=int, default=4, help="requests at one time (default 4)")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many lines: to go on where one stopped")
    parser.add_argument(
        "--job",
        action="store_true",
        help=f"as a job of a cache node ({control.URL_DEFAULT}, or --url), which goes on without this command",
    )
    parser.add_argument("--name", help="of the job: the same call again does not begin it anew")
    parser.add_argument("--detach", action="store_true", help="of a job: don't wait for its end")
    control.add_output(parser)
    return parser


def _as_job(options: argparse.Namespace) -> int:
    options.url = control.URL_DEFAULT if options.url == URL_DEFAULT else options.url
    with _opened(options.file) as file:
        documents = [_sent(document) for document in _documents(file, options)]
    body: dict[str, object] = {"model": options.model, "documents": documents, "at_once": options.at_once}
    if options.name is not None:
        body["name"] = options.name
    return jobs.begin(options, "/v1/prewarm", body)


def _sent(document: Document) -> dict[str, Any]:
    return {name: value for name, value in document.body.items() if name in ("messages", "prompt")}


def _opened(name: str) -> Any:
    return nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb")


def _checked(options: argparse.Namespace) -> int | None:
    """How many documents will be sent; not known of standard input.

    :raises InputError: if a line of a file is no document: before anything is sent."""
    if options.file == "-":
        return None
    with open(options.file, "rb") as file:
        return sum(1 for _ in _documents(file, options))


def _documents(file: IO[bytes], options: argparse.Namespace) -> Iterator[Document]:
    """:raises InputError: at the first line that is no document."""
    seen = number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise control.InputError(f"{options.file}, line {number}: over {LINE_BYTES_MAX} bytes; split the document")
        if not line.strip():
            continue
        seen += 1
        if seen > options.skip:
            yield _document(number, line, options)


def _document(number: int, line: bytes, options: argparse.Namespace) -> Document:
    where = f"{options.file}, line {number}"
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise control.InputError(f"{where}: no JSON: {error}") from error
    if isinstance(given, dict) and isinstance(given.get("messages"), list):
        path, kept = "/v1/chat/completions", {"messages": given["messages"]}
    elif isinstance(given, dict) and isinstance(given.get("prompt"), str):
        path, kept = "/v1/completions", {"prompt": given["prompt"]}
    else:
        raise control.InputError(f'{where}: neither {{"messages": [...]}} nor {{"prompt": "..."}}')
    return Document(number, path, {**kept, "model": options.model, "max_tokens": 1, "temperature": 0})


def _send_all(options: argparse.Namespace, documents: Iterator[Document], tally: Tally) -> None:
    headers = control.headers(options)
    at_once = max(1, min(options.at_once, AT_ONCE_MAX))
    running: dict[Future[dict[str, Any]], Document] = {}
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for document in documents:
                running[pool.submit(_send, options.url, document, headers)] = document
                if len(running) >= at_once:
                    _collect(running, tally)
            while running:
                _collect(running, tally)
        except BaseException:
            for one in running:
                one.cancel()
            raise


def _collect(running: dict[Future[dict[str, Any]], Document], tally: Tally) -> None:
    for one in wait(running, return_when=FIRST_COMPLETED).done:
        document = running.pop(one)
        try:
            tally.add(one.result())
        except talk.TalkError as error:
            tally.fail(document.line, control.explained(error) if error.status else str(error))
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{tally.words()}")
        sys.stderr.flush()


def _send(url: str, document: Document, headers: dict[str, str]) -> dict[str, Any]:
    for left in reversed(range(TRIES)):
        try:
            answer = talk.call_json(
                "POST",
                url.rstrip("/") + document.path,
                document.body,
                headers=headers,
                seconds_max=talk.COMPLETION_SECONDS_MAX,
            )
        except talk.TalkError as error:
            # What is wrong with the request itself will be wrong again.
            if not left or (400 <= error.status < 500 and error.status != 429):
                raise
        else:
            usage = answer.get("usage")
            return usage if isinstance(usage, dict) else {}
    raise AssertionError("the last try either answers or raises")


def _tell(options: argparse.Namespace, tally: Tally) -> int:
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    for failure in tally.failures:
        sys.stderr.write(f"kvcommons prewarm: {failure}\n")
    if options.output == "json":
        shown = {name: getattr(tally, name) for name in ("done", "failed", "prompt_tokens", "cached_tokens")}
        control.show(shown)
    else:
        sys.stdout.write(f"{tally.words()}\n")
    return control.REFUSED_STATUS if tally.failed else 0
