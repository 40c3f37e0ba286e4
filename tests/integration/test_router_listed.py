"""Instances that are listed in the file of settings, and change with it while the router runs."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from router_process import Process, router
from router_support import Call, Engine, chat, engines_of, on_uvloop, plain, request


def write(file: Path, engines: Sequence[Engine], more: str = "", model: str = "m") -> None:
    """The file with these engines; replaced in one go, as a mounted ConfigMap is."""
    listed = [
        f'[[router.instances]]\nname = "{engine.name}"\nurl = "{engine.url}"\nmodel = "{model}"\n' for engine in engines
    ]
    fresh = file.with_name("fresh.toml")
    fresh.write_text(f"[router]\n{more}\n" + "\n".join(listed))
    os.replace(fresh, file)


@asynccontextmanager
async def listing(file: Path, *flags: str, workers: int = 2) -> AsyncIterator[Process]:
    """A router by this file."""
    async with router([], f"--config={file}", f"--workers={workers}", *flags) as process:
        await process.workers(workers)
        await process.healthy()
        yield process


async def answered_by(process: Process, names: set[str], *, seconds_max: float = 5.0) -> None:
    """Waits until these engines answer, and no other."""
    end = asyncio.get_running_loop().time() + seconds_max
    found: set[str] = set()
    while found != names:
        replies = [await process.ask(chat(f"text {number}")) for number in range(12)]
        assert {reply.status for reply in replies} == {200}
        found = {reply.json["engine"] for reply in replies}
        assert asyncio.get_running_loop().time() < end, f"{found} answer instead of {names}"


@pytest.mark.parametrize("workers", [1, 2])
@on_uvloop
async def test_a_changed_file_is_in_force_without_a_restart(workers: int, tmp_path: Path) -> None:
    """Who is added is used, who is taken out ends what it has, and clients see no error."""
    file, going = tmp_path / "router.toml", asyncio.Event()

    async def stream(call: Call) -> None:
        if not call.json.get("stream"):
            await plain(call)
            return
        await call.begin_stream()
        await call.chunk(b"first")
        await going.wait()
        await call.end_stream()

    async with engines_of("a", "b") as engines:
        a, b = engines
        a.script = stream
        write(file, [a])
        async with listing(file, "--policy=roundRobin", workers=workers) as process:
            client = await process.client()
            await client.send(request(chat(stream=True)))
            await client.head()
            write(file, [a, b])
            await answered_by(process, {"a", "b"})
            write(file, [b])
            await answered_by(process, {"b"})
            going.set()
            assert b"first" in await client.rest_of_chunks()
            await process.shows("a has left")
            await process.gone("a")
            assert (await process.metrics())['instance_reloads_total{outcome="ok"}'] == 2


@on_uvloop
async def test_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    """It is told and counted; the instances stay, also when the file is gone; a good one is taken again."""
    file = tmp_path / "router.toml"
    async with engines_of("a", "b") as engines:
        write(file, engines[:1])
        async with listing(file) as process:
            file.write_text("[router\n")
            await process.shows("mend its syntax")
            file.write_text("[router]\n")
            await process.shows("give at least one")
            file.unlink()
            await process.shows("make the file readable")
            await answered_by(process, {"a"})
            write(file, engines[1:])
            await answered_by(process, {"b"})
            assert (await process.metrics())['instance_reloads_total{outcome="failed"}'] == 3


@on_uvloop
async def test_sighup_reads_the_file_at_once_and_ends_nobody(tmp_path: Path) -> None:
    """Also when all processes of the group get it, and when the file looks unchanged."""
    file = tmp_path / "router.toml"
    async with engines_of("a") as engines:
        write(file, engines)
        async with listing(file) as process:
            pids = [process.process.pid, *await process.workers(2)]
            for pid in pids:
                os.kill(pid, signal.SIGHUP)
            await process.shows("the file has been read again")
            await answered_by(process, {"a"})
            assert (await process.metrics())["worker_restarts_total"] == 0
            assert await process.workers(2) == pids[1:]


@on_uvloop
async def test_what_takes_a_restart_says_so(tmp_path: Path) -> None:
    """Of a changed file only the instances are taken; another model is served, the former one is not known."""
    file = tmp_path / "router.toml"
    async with engines_of("a") as engines:
        write(file, engines)
        async with listing(file) as process:
            write(file, engines, 'policy = "leastLoad"', model="other")
            await process.shows("need a restart")
            await process.shows("is described otherwise now")
            refused = 0
            while refused < 8:
                reply = await process.ask(chat())
                refused = refused + 1 if reply.status == 404 else 0
            assert reply.error["code"] == "model_not_found"
            assert reply.error["message"] == "The model 'm' is not served here; served are other."
            models = await process.ask(b"", path="/v1/models", method="GET")
            assert [one["id"] for one in models.json["data"]] == ["other"]


@on_uvloop
async def test_an_engines_own_key_takes_the_clients_from_then_on(tmp_path: Path) -> None:
    """A key that is given to an engine later goes alone with what clients send on connections that are open already."""
    file = tmp_path / "router.toml"
    async with engines_of("a") as engines:
        (a,) = engines
        write(file, engines)
        async with listing(file, workers=1) as process:
            client = await process.client()
            named = {"Authorization": "Bearer clients-own"}
            await client.ask(chat(), headers=named)
            assert a.calls[-1].headers["authorization"] == "Bearer clients-own"
            file.write_text(file.read_text() + 'api_key = "engines-own"\n')

            async def asked() -> bool:
                await client.ask(chat(), headers=named)
                return b"engines-own" in a.calls[-1].head

            await process.shows("is described otherwise now")
            for _ in range(500):
                if await asked():
                    break
            assert a.calls[-1].head.lower().count(b"authorization:") == 1
            assert b"clients-own" not in a.calls[-1].head


@on_uvloop
async def test_the_first_lines_say_how_it_stands_with_the_index(tmp_path: Path) -> None:
    """Without Redis, and with one that does not answer: one line each, and the same in /health."""
    file = tmp_path / "router.toml"
    async with engines_of("a") as engines:
        write(file, engines)
        async with listing(file, workers=1) as process:
            await process.shows("index: none")
            assert (await process.health())["index"] == "none"
        async with listing(file, "--redis=redis://127.0.0.1:1") as process:
            await process.shows("index: away")
            assert (await process.health())["index"] == "away"
            assert (await process.ask(b"", path="/readyz", method="GET")).status == 200
            assert (await process.ask(b"", path="/healthz", method="GET")).json == {"status": "alive"}


@on_uvloop
async def test_a_fleet_that_only_prefills_is_not_ready(tmp_path: Path) -> None:
    """Nobody could answer a whole request, so requests are refused and /health says so; a decode replica ends that."""
    file = tmp_path / "router.toml"
    async with engines_of("p", "d") as engines:
        write(file, engines[:1])
        file.write_text(file.read_text() + 'role = "prefill"\n')
        async with router([], f"--config={file}") as process:
            await process.shows("p is up")
            health = await process.health()
            assert (health["code"], health["status"]) == (503, "unavailable")
            refused = await process.ask(chat())
            assert (refused.status, refused.error["code"]) == (503, "no_instance_ready")
            listed = f'[[router.instances]]\nname = "d"\nurl = "{engines[1].url}"\nmodel = "m"\nrole = "decode"\n'
            file.write_text(file.read_text() + listed)
            await process.healthy()
            await answered_by(process, {"d"})
            assert engines[0].calls == []


def test_a_router_that_watches_no_pods_needs_no_client_of_kubernetes() -> None:
    """aiohttp is imported by the one process that watches, and by no other."""
    program = "import sys, kvcommons_router.cli; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def refused_at(port: int, workers: int) -> tuple[int, str]:
    """The exit status of another router on a port, and what it says."""
    flags = ["--instance=name=a,url=http://h:1,model=m", f"--listen=127.0.0.1:{port}", f"--workers={workers}"]
    command = [sys.executable, "-m", "kvcommons_router", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@on_uvloop
async def test_a_port_that_another_router_has_is_named(tmp_path: Path) -> None:
    """Also where both have several workers, whose ports the kernel would let them share."""
    file = tmp_path / "router.toml"
    async with engines_of("a") as engines:
        write(file, engines)
        async with listing(file) as process:
            for workers in (1, 2):
                status, said = await asyncio.to_thread(refused_at, process.port, workers)
                assert status == 2
                assert (
                    f"router.listen: '127.0.0.1:{process.port}': can't be listened on (Address already in use)" in said
                )
            os.kill((await process.workers(2))[0], signal.SIGKILL)
            for _ in range(1000):
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    metrics = await process.metrics()
                    if (metrics["worker_restarts_total"], metrics["workers"]) == (1, 2):
                        return
                await asyncio.sleep(0.01)
            raise AssertionError("the worker is not replaced")
