"""The framing of engines' answers, cut anywhere."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvcommons_router.response import BadResponse, ChunkScanner, read_head
from kvcommons_router.usage import Usage, usage_of

BODY = b"5\r\nhello\r\n1;ext=1\r\n \r\n00a\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
PAYLOAD = b"hello 0123456789"


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, len(BODY)), max_size=12))
def test_the_end_is_found_wherever_the_pieces_are_cut(cuts: list[int]) -> None:
    """However the body and what follows it arrive, the end is found and the payload is whole."""
    stream = BODY + b"NEXT"
    edges = [0, *sorted(cuts), len(stream)]
    scanner = ChunkScanner(keep_payload=True)
    relayed, payload = b"", b""
    for begin, end in itertools.pairwise(edges):
        piece = stream[begin:end]
        taken = scanner.feed(piece)
        payload += scanner.take_payload()
        if taken >= 0:
            relayed += piece[:taken]
            break
        relayed += piece
    assert relayed == BODY
    assert payload == PAYLOAD


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=6))
def test_whole_chunks_pass_quickly(chunks: list[bytes]) -> None:
    """A piece that is one chunk is passed over, and only the last one ends the body."""
    scanner = ChunkScanner()
    for chunk in chunks:
        assert scanner.feed(b"%x\r\n%b\r\n" % (len(chunk), chunk)) == -1
    assert scanner.feed(b"0\r\n\r\n") == 5


@pytest.mark.parametrize(
    "line", [b"\r\n", b"g\r\n", b"-1\r\n", b"+5\r\n", b"0x5\r\n", b"5\n", b"1" * 13 + b"\r\n", b" \r\n"]
)
def test_a_size_that_is_none_is_refused(line: bytes) -> None:
    """A size line that clients may read otherwise is not relayed."""
    with pytest.raises(BadResponse):
        ChunkScanner().feed(line + b"hello\r\n")


def test_an_endless_size_line_is_refused() -> None:
    """What has no line end within 4 KiB is no size."""
    scanner = ChunkScanner()
    for _ in range(4):
        assert scanner.feed(b"0" * 1024) == -1
    with pytest.raises(BadResponse):
        scanner.feed(b"0")


def test_hop_by_hop_headers_are_not_relayed() -> None:
    """What belongs to the connection with the engine stays there, what Connection names included."""
    head = read_head(
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n"
        b"x-request-id: engine\r\nTransfer-Encoding: chunked\r\nX-Other: 2"
    )
    assert head.lines == b"Content-Type: a/b\r\nX-Other: 2"
    assert (head.status, head.chunked, head.close, head.content_length) == (200, True, True, -1)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nName : x",
        b"HTTP/2 200",
        b"SSH-2.0-OpenSSH",
        b"HTTP/1.1 abc",
    ],
)
def test_contradictory_heads_are_refused(raw: bytes) -> None:
    """An answer whose length could be read in two ways is not an answer."""
    with pytest.raises(BadResponse):
        read_head(raw)


def test_usage_is_read_from_the_end() -> None:
    """The engine's account of the prompt, and not what the model wrote in a string."""
    tail = (
        b'{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}],"usage":{"prompt_tokens":120,"total_tokens":140,'
        b'"completion_tokens":20,"prompt_tokens_details":{"cached_tokens":96}},"kv_transfer_params":null}'
    )
    assert usage_of(tail) == Usage(120, 96)
    assert usage_of(b'"usage": {"prompt_tokens": 7}') == Usage(7, -1)
    assert usage_of(b'"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}') is None
    assert usage_of(b"data: [DONE]") is None
    assert usage_of(b'"usage":null}') is None
