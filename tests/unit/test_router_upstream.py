"""A connection to an engine by itself: pieces go straight to the client's socket, or by its transport, and never elsewhere."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import weakref
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvcommons_router import relay
from kvcommons_router.relay import SPACE
from kvcommons_router.response import Head
from kvcommons_router.upstream import Upstream

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
needs_native = pytest.mark.skipif(not relay.HAVE_NATIVE, reason="this installation has no native module: make build")


class ClientSide(asyncio.Transport):
    """A client's transport: what is written to it waits as long as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.written = b""
        self.waiting = 0
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closing

    @property
    def sent(self) -> bytes:
        """What went straight to the socket since the last look."""
        try:
            return self.theirs.recv(1 << 20)
        except BlockingIOError:
            return b""


class EngineSide(asyncio.Transport):
    """An engine's transport, of which nothing is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class Receiver:
    """Relays by an upstream as an exchange does."""

    def __init__(self, client: ClientSide) -> None:
        self.client = client
        self.ended = ""
        self.upstream: Upstream | None = None

    def head(self, upstream: Upstream, head: Head) -> None:
        self.upstream = upstream

    def body(self, data: bytes, payload: bytes | None) -> None:
        assert self.upstream is not None
        self.upstream.pass_to(self.client, self.client.ours.fileno())
        self.client.write(data)
        self.upstream.note(data, 1.0)

    def answered(self) -> None:
        self.ended = "answered"

    def broken(self, reason: str) -> None:
        self.ended = reason


class Pool:
    """Keeps nothing."""

    def give_back(self, upstream: Upstream) -> None:
        pass

    def lost(self, upstream: Upstream) -> None:
        pass


def read(upstream: Upstream, data: bytes) -> None:
    """What the loop does when an engine sends something."""
    if relay.HAVE_NATIVE:
        assert upstream.get_buffer(-1) is SPACE
        SPACE[: len(data)] = data
        upstream.buffer_updated(len(data))
    else:
        upstream.data_received(data)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def streaming(client: ClientSide, first: bytes = b"") -> tuple[Upstream, Receiver, EngineSide]:
    """An upstream after the head and the first piece of an answer."""
    upstream, receiver, engine = Upstream(Pool()), Receiver(client), EngineSide()
    upstream.transport = engine
    upstream.begin(receiver, 0.0, dechunk=False)
    read(upstream, HEAD + (first or chunk(b"first")))
    return upstream, receiver, engine


@pytest.fixture
def client() -> Iterator[ClientSide]:
    one = ClientSide()
    yield one
    one.ours.close()
    one.theirs.close()


@needs_native
def test_a_token_goes_straight_to_the_socket(client: ClientSide) -> None:
    """After the first piece the transport sees nothing of whole chunks, and the account is kept all the same."""
    upstream, receiver, _ = streaming(client)
    before = client.written
    for number in range(20):
        read(upstream, chunk(b"token %d" % number))
        assert client.sent == chunk(b"token %d" % number)
    assert client.written == before
    relayed, pieces, tail = upstream.account()
    assert (relayed, pieces) == (len(before) + sum(len(chunk(b"token %d" % n)) for n in range(20)), 21)
    assert tail.endswith(chunk(b"token 18") + chunk(b"token 19"))
    read(upstream, b"0\r\n\r\n")
    assert receiver.ended == "answered"
    assert client.written == before + b"0\r\n\r\n"


@needs_native
def test_nothing_is_sent_past_what_waits(client: ClientSide) -> None:
    """While the transport still holds bytes of this answer, what follows waits behind them."""
    upstream, _, _ = streaming(client)
    before = client.written
    client.waiting = 1
    read(upstream, chunk(b"behind"))
    assert (client.sent, client.written) == (b"", before + chunk(b"behind"))
    client.waiting = 0
    read(upstream, chunk(b"straight"))
    assert (client.sent, client.written) == (chunk(b"straight"), before + chunk(b"behind"))


@needs_native
def test_a_closed_clients_descriptor_is_not_written_to(client: ClientSide) -> None:
    """Its number may be another client's by now: nothing of this answer reaches whoever has it."""
    upstream, _, _ = streaming(client)
    other, at_other = socket.socketpair()
    at_other.setblocking(False)
    number = client.ours.fileno()
    client.closing = True
    client.ours.close()
    reused = other.detach()
    if reused != number:  # the lowest number is free, but be sure
        moved = socket.socket(fileno=reused)
        reused = moved.dup().detach()
        moved.close()
    with socket.socket(fileno=reused), at_other:
        assert reused == number
        read(upstream, chunk(b"secret"))
        with pytest.raises(BlockingIOError):
            at_other.recv(1)


@needs_native
@pytest.mark.parametrize("end", ["abandoned", "answered", "lost"])
def test_nothing_goes_to_a_client_whose_answer_is_over(client: ClientSide, end: str) -> None:
    """What an engine sends afterwards ends its connection and reaches nobody."""
    upstream, _, engine = streaming(client)
    if end == "abandoned":
        upstream.abandon()
    elif end == "answered":
        read(upstream, b"0\r\n\r\n")
    else:
        upstream.connection_lost(None)
    before = client.written
    read(upstream, chunk(b"late"))
    assert (client.sent, client.written) == (b"", before)
    assert engine.aborted


@needs_native
def test_what_a_full_socket_leaves_goes_by_the_transport(client: ClientSide) -> None:
    """The first part went out, the transport gets just the rest."""
    client.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    upstream, _, _ = streaming(client)
    before = len(client.written)
    piece = chunk(bytes(range(256)) * 200)
    read(upstream, piece)
    sent = client.sent
    assert 0 < len(sent) < len(piece)
    assert sent + client.written[before:] == piece


def test_a_broken_size_line_ends_the_answer(client: ClientSide) -> None:
    """In the middle as at its beginning: what clients may read otherwise is not relayed."""
    upstream, receiver, engine = streaming(client)
    before = client.written
    read(upstream, chunk(b"fine") + b"nonsense\r\n")
    assert "hexadecimal" in receiver.ended
    assert engine.aborted
    assert (client.sent, client.written) == (b"", before)


def test_silence_is_told_from_talk(client: ClientSide) -> None:
    """The clock that looks once a second sees that something came, and when nothing did."""
    upstream, _, _ = streaming(client)
    assert upstream.heard_at(5.0) == 5.0
    assert upstream.heard_at(6.0) == 5.0
    read(upstream, chunk(b"more"))
    assert upstream.heard_at(7.0) == 7.0
    assert upstream.heard_at(9.0) == 7.0


BODY = (
    b"".join(chunk(b"x" * size) for size in (1, 15, 16, 300, 7))
    + b"4;a=b\r\nwxyz\r\n"
    + chunk(b"y" * 40)
    + b"0\r\nT: 1\r\n\r\n"
)


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
@settings(deadline=None)  # the machine may be busy
@given(
    cuts=st.lists(st.integers(1, len(BODY) - 1), max_size=20), behind=st.lists(st.booleans(), min_size=22, max_size=22)
)
def test_bytes_keep_their_order_wherever_they_are_cut(native: bool, cuts: list[int], behind: list[bool]) -> None:
    """Each piece goes one way or the other; together they are what the engine sent, and the account says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "HAVE_NATIVE", native)
        client = ClientSide()
        edges = [0, *sorted(set(cuts)), len(BODY)]
        pieces = [BODY[begin:end] for begin, end in itertools.pairwise(edges)]
        with client.ours, client.theirs:
            upstream, receiver, _ = streaming(client, pieces[0])
            got = client.written
            for piece, wait in zip(pieces[1:], behind, strict=False):
                client.waiting, client.written = int(wait), b""
                read(upstream, piece)
                got += client.sent + client.written
        assert got == BODY
        assert receiver.ended == "answered"
        relayed, count, tail = upstream.account()
        assert (relayed, count) == (len(BODY), len(pieces))
        assert BODY.endswith(tail)
        assert len(tail) >= len(pieces[-1])


@needs_native
def test_a_connection_is_forgotten_with_its_last_user() -> None:
    """The native part and the connection know each other; Python's collector frees both."""
    upstream = Upstream(Pool())
    gone = weakref.ref(upstream)
    del upstream
    gc.collect()
    assert gone() is None


def test_no_more_than_the_space_is_believed() -> None:
    """A count beyond what can have been read is an error that says so, and nothing is sent."""
    if relay.HAVE_NATIVE:
        with pytest.raises(ValueError, match=f"nbytes is {len(SPACE) + 1}"):
            Upstream(Pool()).buffer_updated(len(SPACE) + 1)
