"""TLS towards clients and engines: bytes are the same, certificates are checked, and a new one is taken without a restart."""

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest
from certificates import write_certificate
from kvcommons_core.errors import ConfigurationError
from kvcommons_router.http_server import ClientConnection
from kvcommons_router.settings import load
from kvcommons_router.settings_instances import InstanceSettings
from kvcommons_router.tls import ServerTls
from router_process import router as router_process
from router_support import Call, Client, Engine, chat, engines_of, on_uvloop, request, running, settings_for

EVENTS = [b"data: %d %b\n\n" % (number, b"x" * (37 * number % 5000)) for number in range(60)]


async def stream(call: Call) -> None:
    """Many pieces, as an engine sends tokens."""
    await call.begin_stream()
    for event in EVENTS:
        await call.chunk(event)
    await call.end_stream()


async def connect(port: int, authority: Path) -> Client:
    """A client that checks the certificate."""
    tls = ssl.create_default_context(cafile=authority)
    return Client(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))


async def shown(port: int, authority: Path) -> str:
    """The common name of the certificate that a router shows."""
    client = await connect(port, authority)
    found = client.writer.get_extra_info("peercert")["subject"][0][0][1]
    client.close()
    assert isinstance(found, str)
    return found


@on_uvloop
async def test_streams_by_tls_are_the_engines_bytes(tmp_path: Path) -> None:
    """Encrypted on the client's side, each event comes whole and in order, on a connection that is kept."""
    certificate, key = write_certificate(tmp_path, "router", "127.0.0.1")
    async with engines_of("a") as engines:
        engines[0].script = stream
        settings = settings_for(engines, tls_certificate=certificate, tls_key=key)
        async with running(settings) as router:
            assert router.app.tls is not None
            loop = asyncio.get_running_loop()
            served = lambda: ClientConnection(router.app)
            server = await loop.create_server(served, "127.0.0.1", 0, ssl=router.app.tls.context)
            client = await connect(server.sockets[0].getsockname()[1], certificate)
            for _ in range(3):
                reply = await client.ask(chat(stream=True))
                assert reply.status == 200
                assert reply.body == b"".join(EVENTS)
            client.close()
            server.close()


@on_uvloop
async def test_a_router_serves_by_tls_and_takes_a_new_certificate(tmp_path: Path) -> None:
    """As a process: no plain answer; changed files are shown to new clients, broken ones are not taken."""
    certificate, key = write_certificate(tmp_path, "first", "127.0.0.1")
    second = write_certificate(tmp_path, "second", "127.0.0.1")
    environment = {"KVCOMMONS_ROUTER__TLS_CERTIFICATE": str(certificate), "KVCOMMONS_ROUTER__TLS_KEY": str(key)}
    first = tmp_path / "authority.crt"
    shutil.copy(certificate, first)
    async with engines_of("a") as engines, router_process(engines, environment=environment) as process:
        assert await shown(process.port, first) == "first"
        client = await connect(process.port, first)
        await client.send(request(b"", path="/healthz", method="GET"))
        assert (await client.reply()).status == 200
        plain = await process.client()
        await plain.send(request(b"", path="/healthz", method="GET"))
        assert b"HTTP" not in await plain.closed()
        certificate.write_bytes(second[0].read_bytes())  # half of a pair
        await process.shows("the certificate read before stays in force")
        assert await shown(process.port, first) == "first"
        key.write_bytes(second[1].read_bytes())
        await process.shows("the certificate has been read again")
        assert await shown(process.port, second[0]) == "second"


@on_uvloop
async def test_engines_by_tls_are_believed_by_their_certificate_alone(tmp_path: Path) -> None:
    """https:// engines are asked, and checked, by TLS; one with a certificate of somebody else's gets no request."""
    certificate, key = write_certificate(tmp_path, "engine", "127.0.0.1")
    stranger, _ = write_certificate(tmp_path, "stranger", "127.0.0.1")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    engine = Engine("a", script=stream)
    server = await asyncio.start_server(engine._serve, "127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        for authority, status in ((certificate, 200), (stranger, 502)):
            settings = settings_for(
                [], engine_ca=authority, instances=(InstanceSettings(name="a", url=url, model="m"),)
            )
            async with running(settings) as router:
                reply = await router.ask(chat(stream=True))
                assert reply.status == status
                if status == 200:
                    assert reply.body == b"".join(EVENTS)
        assert len(engine.calls) == 1
    finally:
        server.close()


def test_files_that_are_no_certificate_are_named(tmp_path: Path) -> None:
    """A start with a wrong pair, or with half of one, says which setting and what to give."""
    certificate, _ = write_certificate(tmp_path, "one")
    _, key = write_certificate(tmp_path, "two")
    with pytest.raises(ConfigurationError, match=r"tls_certificate.*give a PEM certificate chain"):
        ServerTls(certificate, key)
    with pytest.raises(ConfigurationError, match="go together"):
        load(
            None,
            {},
            {"tls_certificate": certificate, "instances": [{"name": "a", "url": "http://h:1", "model": "m"}]},
            {},
        )
