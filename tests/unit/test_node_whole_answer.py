"""Answers of other servers come in pieces."""

import asyncio

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from kvcommons_node.whole_answer import whole


def stream() -> aiohttp.StreamReader:
    """Of a connection that is open."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    return aiohttp.StreamReader(protocol, 1 << 16, loop=loop)


async def test_an_answer_in_pieces_is_read_to_its_end() -> None:
    """What came first is no answer by itself."""
    content = stream()
    content.feed_data(b'{"chunks":')
    reading = asyncio.create_task(whole(content, 100))
    await asyncio.sleep(0)  # it has read the first piece, and waits
    assert not reading.done()
    content.feed_data(b" 1}")
    content.feed_eof()
    assert await reading == b'{"chunks": 1}'


async def test_an_answer_that_is_too_long_is_refused_with_the_bound() -> None:
    """Before its end, which may never come."""
    content = stream()
    content.feed_data(bytes(101))
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        await whole(content, 100)
