"""Streams over real sockets by the native way and the plain one: clients that are slow, and clients that are gone."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct

import pytest
from kvcommons_router import relay
from router_support import Call, chat, engines_of, on_uvloop, request, running, settings_for, until

PIECES = 400
ways = pytest.mark.parametrize("native", [True, False])


@pytest.fixture(autouse=True)
def way(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams go the native way or the plain one."""
    if native and not relay.HAVE_NATIVE:
        pytest.skip("this installation has no native module: make build")
    monkeypatch.setattr(relay, "HAVE_NATIVE", native)


async def connect(port: int, receive_bytes: int) -> socket.socket:
    """A client whose system takes no more than so much before it is read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


@ways
@on_uvloop
async def test_a_client_that_reads_in_sips_gets_every_byte_in_order(native: bool) -> None:
    """Sends that are taken in part are followed by their rest, and by nothing else before it; memory stays bounded."""
    rng = random.Random(5)
    events = [rng.randbytes(rng.choice([30, 200, 9000, 40000])) for _ in range(PIECES)]
    stream = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"

    async def flow(call: Call) -> None:
        await call.begin_stream()
        for event in events:
            await call.chunk(event)
        await call.end_stream()

    async with engines_of("a") as engines:
        engines[0].script = flow
        async with running(settings_for(engines)) as router:
            loop = asyncio.get_running_loop()
            with await connect(router.port, 4096) as sock:
                await loop.sock_sendall(sock, request(chat(stream=True)))
                got = bytearray()
                held = 0
                while not got.endswith(b"\r\n0\r\n\r\n"):
                    got += await loop.sock_recv(sock, rng.choice([1, 700, 5000, 60000]))
                    exchanges = [one.exchange for one in router.app.connections if one.exchange is not None]
                    held = max([held, *(one.client.transport.get_write_buffer_size() for one in exchanges)])
            _, _, body = bytes(got).partition(b"\r\n\r\n")
            assert hashlib.sha256(body).digest() == hashlib.sha256(stream).digest()
            assert held < 1 << 20
            assert router.count("response_bytes_total") >= len(stream)


@ways
@on_uvloop
async def test_a_client_that_resets_ends_its_stream_and_nobody_elses(native: bool) -> None:
    """While engines send as fast as they can, clients vanish and others take their descriptors: each stream that is read
    holds its own text alone, and the engines of those who left learn it."""

    async def flood(call: Call) -> None:
        text = call.json["messages"][0]["content"].encode()
        await call.begin_stream()
        while not call.gone.is_set():
            await call.chunk(text * 50)
            await asyncio.sleep(0)

    async with engines_of("a", "b") as engines:
        for engine in engines:
            engine.script = flood
        async with running(settings_for(engines)) as router:
            loop = asyncio.get_running_loop()
            for turn in range(20):
                text = f"<{turn:06d}>"
                sock = await connect(router.port, 65536)
                await loop.sock_sendall(sock, request(chat(text, stream=True)))
                got = b""
                while len(got) < 20000:
                    got += await loop.sock_recv(sock, 65536)
                _, _, body = got.partition(b"\r\n\r\n")
                line = b"%x\r\n" % (len(text) * 50)
                whole = line + text.encode() * 50 + b"\r\n"
                assert body == (whole * (len(body) // len(whole) + 1))[: len(body)]
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()  # a reset
            calls = [call for engine in engines for call in engine.calls]
            assert len(calls) == 20
            await until(lambda: all(call.gone.is_set() for call in calls), "every engine to learn it")
            await until(lambda: router.count("requests_total", status="499") == 20, "all to be counted")
