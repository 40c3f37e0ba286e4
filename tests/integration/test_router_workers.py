"""The router as a process: its command line, several workers with one truth, draining, crashes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from router_process import router, state_of
from router_support import Call, chat, engines_of, on_uvloop, request


@on_uvloop
async def test_two_workers_tell_one_truth() -> None:
    """Whichever worker answers /metrics or /health speaks for both."""
    async with engines_of("a", "b") as engines, router(engines, "--workers=2") as process:
        await process.workers(2)
        await process.healthy()
        clients = [await process.client() for _ in range(16)]
        for number, client in enumerate(clients):
            for _ in range(5):
                assert (await client.ask(chat(f"text {number}"))).status == 200
        for _ in range(4):
            metrics = await process.metrics()
            assert metrics['requests_total{model="m",status="200"}'] == 80
            assert metrics['instance_up{replica="a"}'] == 1
            health = (await process.ask(b"", path="/health", method="GET")).json
            models = {"m": {"instances": 2, "up": 2}}
            assert health == {"status": "ok", "models": models, "workers": 2, "index": "none"}
        for client in clients:
            client.close()


@on_uvloop
async def test_a_worker_that_dies_is_replaced_and_no_count_is_lost() -> None:
    """kill -9 of one worker: another one starts, counters go on, gauges of the dead one are gone."""
    async with engines_of("a") as engines, router(engines, "--workers=2") as process:
        pids = await process.workers(2)
        clients = [await process.client() for _ in range(8)]
        for client in clients:
            assert (await client.ask(chat())).status == 200
            client.close()
        assert (await process.metrics())['requests_total{model="m",status="200"}'] == 8
        os.kill(pids[1], signal.SIGKILL)
        for _ in range(1000):
            try:
                metrics = await process.metrics()
            except (OSError, asyncio.IncompleteReadError):  # it was on its way to the dead one
                continue
            if metrics["worker_restarts_total"] == 1 and metrics["workers"] == 2:
                break
            await asyncio.sleep(0.01)
        assert metrics["worker_restarts_total"] == 1
        assert {name: value for name, value in metrics.items() if name.startswith("requests_total")} == {
            'requests_total{model="m",status="200"}': 8
        }
        assert set(pids) != set(await process.workers(2))


@pytest.mark.parametrize("workers", [1, 2])
@on_uvloop
async def test_sigterm_drains(workers: int) -> None:
    """After SIGTERM nothing new is taken, what is under way ends whole, and the process ends well."""
    going = asyncio.Event()

    async def slow(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b"first")
        await going.wait()
        await call.chunk(b"last")
        await call.end_stream()

    async with engines_of("a") as engines:
        engines[0].script = slow
        async with router(engines, f"--workers={workers}") as process:
            await process.workers(workers)
            idle, busy = await process.client(), await process.client()
            await idle.ask(b"", path="/v1/models", method="GET")
            await busy.send(request(chat(stream=True)))
            await busy.head()
            process.process.send_signal(signal.SIGTERM)
            assert await idle.closed() == b""
            await process.deaf()
            going.set()
            assert await busy.closed() == b"5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n"
            assert await process.ended() == 0


@on_uvloop
async def test_draining_has_an_end() -> None:
    """A request that outlasts the time for draining is cut, and the process ends."""

    async def endless(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b"x")
        await call.gone.wait()

    async with engines_of("a") as engines:
        engines[0].script = endless
        async with router(engines, "--drain-seconds=0.2") as process:
            client = await process.client()
            await client.send(request(chat(stream=True)))
            await client.head()
            process.process.send_signal(signal.SIGTERM)
            assert await process.ended() == 0
            client.close()


@on_uvloop
async def test_workers_end_with_their_supervisor() -> None:
    """kill -9 of the supervisor leaves no worker behind."""
    async with engines_of("a") as engines, router(engines, "--workers=2") as process:
        pids = await process.workers(2)
        process.process.kill()
        await process.ended()
        for _ in range(1000):
            if all(state_of(pid) == "Z" for pid in pids):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("a worker is left")


@on_uvloop
async def test_the_access_log_is_json_lines(tmp_path: Path) -> None:
    """With --access-log each request is one object on standard output, flushed at the end."""
    config = tmp_path / "router.toml"
    async with engines_of("a") as engines:
        config.write_text(
            f'[router]\naccess_log = true\n[[router.instances]]\nname = "x"\nurl = "{engines[0].url}"\nmodel = "m"\n'
            "[node]\narena_bytes = 1\n"
        )
        async with router([], f"--config={config}", environment={"KVCOMMONS_ROUTER__LOG_LEVEL": "debug"}) as process:
            reply = await process.ask(chat())
            process.process.send_signal(signal.SIGTERM)
            assert await process.ended() == 0
    (line,) = process.output.splitlines()
    record = json.loads(line)
    assert record["request_id"] == reply.header("x-request-id")
    assert (record["status"], record["instance"], record["tenant"], record["attempts"]) == (200, "x", "default", 1)


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ([], 2, "give at least one"),
        (["--instance=name=a,url=http://h:1"], 2, "serves no model"),
        (["--instance=name=a,url=ftp://h:1,model=m"], 2, "http://HOST:PORT"),
        (["--instance=name=a,ulr=http://h:1,model=m"], 2, "there is no such key"),
        (["--instance=name=a,url=http://h:1,model=m", "--listen=8000"], 2, "HOST:PORT"),
        ([], 2, "router.instances"),
        (["--instance=name=a,url=http://h:1,model=m", "--listen=203.0.113.7:80"], 2, "router.listen: '203.0.113.7:80'"),
        (["--instance=name=a,url=http://h:1,model=m", "--api-keys=/nowhere"], 2, "router.api_keys: '/nowhere'"),
        (["--instance=name=a,url=http://h:70000,model=m"], 2, "a port is 1 to 65535"),
        (["--instance=name=a,url=http://h:1,model=m"] * 2, 2, "router.instances.1.name: 'a'"),
        (["--instance=name=a,url=http://h:1,model=m", "--redis=http://x"], 2, "begin it with"),
        (["--config=/nowhere.toml"], 2, "/nowhere.toml"),
    ],
)
def test_settings_that_cannot_be_used_are_named(flags: list[str], status: int, words: str, tmp_path: Path) -> None:
    """One clear line on standard error and a status, no trace of the program's inside."""
    done = subprocess.run(
        [sys.executable, "-m", "kvcommons_router", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (status, True, False), done.stderr
