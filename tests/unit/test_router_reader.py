"""Requests as the router reads them: by the parser at first, past it once their heads are known, always alike."""

import random
from collections.abc import Sequence

import pytest
from kvcommons_router.admission import Admission
from kvcommons_router.auth import Authenticator
from kvcommons_router.budgets import Budgets
from kvcommons_router.cells import Cells
from kvcommons_router.context import Context
from kvcommons_router.known_heads import KnownHeads
from kvcommons_router.metrics import Layout
from kvcommons_router.request import Request
from kvcommons_router.request_reader import RequestReader
from kvcommons_router.settings import RouterSettings

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nContent-Length: %d\r\nX-Two: 2\r\n\r\n"


class Reading:
    """A connection's reader and what it has read."""

    def __init__(self, heads: KnownHeads | None = None) -> None:
        every = RouterSettings()
        layout = Layout()
        context = Context(every, layout=layout, cells=Cells(1, layout.columns), row=0)
        self.budgets = Budgets(every.router.limits, context.recorder)
        self.admission = Admission(context, Authenticator(None, b""), self.budgets)
        if heads is not None:
            self.admission.heads = heads
        self.requests: list[Request] = []
        self.reader = RequestReader(self.admission, self.requests.append, lambda: 1.0)

    def feed(self, pieces: Sequence[bytes]) -> list[tuple[object, ...]]:
        """What was read from these pieces, by what matters of it."""
        begin = len(self.requests)
        for piece in pieces:
            self.reader.feed(piece)
        return [
            (one.method, one.target, one.path, one.head.forwarded, one.body, one.body_bytes, one.keep_alive, one.http10)
            for one in self.requests[begin:]
            if one.refusal is None
        ]


def request(body: bytes) -> bytes:
    """A request with this body."""
    return HEAD % len(body) + body


def known() -> KnownHeads:
    """What is known after one request."""
    reading = Reading()
    reading.feed([request(b"{}")])
    return reading.admission.heads


def test_a_known_head_is_read_as_the_parser_reads_it_however_its_bytes_come() -> None:
    """Whole, cut anywhere, several at once, with another length: the requests are the same as without a memory."""
    chance = random.Random(7)
    bodies = [b"", b"x", b"\r\n\r\n", b'{"a": 1}' * 300, request(b"no request")]
    stream = b"".join(request(body) for body in bodies * 3)
    expected = Reading().feed([stream])
    assert [one[4] for one in expected] == bodies * 3
    heads = known()
    for _ in range(200):
        cuts = sorted(chance.sample(range(1, len(stream)), chance.randrange(0, 12)))
        pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        reading = Reading(heads)
        assert reading.feed(pieces) == expected
        assert reading.budgets.body_bytes == sum(len(body) for body in bodies * 3)


def test_a_known_head_goes_past_the_parser() -> None:
    """The second request of a kind needs no parsing."""
    found = known().find(request(b"hello"))
    assert found is not None
    head, begin, length = found
    assert (head.method, head.path, length) == (b"POST", b"/v1/completions", 5)
    assert request(b"hello")[begin:] == b"hello"


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/completions HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Length: 3\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nX-Length: 3\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_only_heads_whose_length_alone_says_where_the_body_ends_are_remembered(raw: bytes) -> None:
    """Everything unusual goes by the parser each time."""
    reading = Reading()
    reading.feed([raw])
    assert reading.admission.heads.find(raw) is None


@pytest.mark.parametrize("digits", [b"", b"-1", b"+1", b"1 ", b"0x2", b"1" * 13, b"1,1"])
def test_a_known_head_with_a_length_that_is_none_is_for_the_parser(digits: bytes) -> None:
    """What is not a plain number is never taken for one."""
    assert known().find(HEAD.replace(b"%d", digits)) is None


def test_a_body_beyond_the_limit_is_refused_with_a_known_head_too() -> None:
    """The parser's way says it, once."""
    reading = Reading(known())
    limit = reading.admission.limits.body_bytes_max
    reading.reader.feed(HEAD % (limit + 1) + b"x")
    assert [one.refusal.status for one in reading.requests if one.refusal is not None] == [413]
    assert reading.budgets.body_bytes == 0


def test_what_was_read_is_forgotten_when_engines_begin_to_ask_for_keys() -> None:
    """A client's key that went on to an engine yesterday must not go there today."""
    reading = Reading()
    raw = request(b"{}").replace(b"X-One: 1", b"Authorization: Bearer k")
    assert b"Bearer k" in reading.feed([raw])[0][3]  # type: ignore[operator]  # the lines that go on
    reading.admission.engine_keys(True)
    assert b"Bearer k" not in reading.feed([raw])[0][3]  # type: ignore[operator]
