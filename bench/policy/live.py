"""Real routers, one worker against several, in front of engines that only pretend: the same requests at the same moments, side by side.

    python -m bench.policy.live [--workers 4] [--kind chat] [--seed 1] [--seconds 60] [--speed 1.5]

Each fleet has a router of its own (processes, as deployed), a Redis of its own and eight engines in this process, which prefill one prompt after the
other in `bench.policy.world.Model`'s time and keep the least recently used blocks. Both fleets run at once, so that a noisy machine is as noisy to both.
`figures` are milliseconds from the moment a request was due to its first byte; `ratios.mean` is that of the several over the one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import uvloop
from kvcommons_core import redis_server

from bench.common import percentile, report
from bench.policy import workloads
from bench.policy.world import Model, Request

ENGINES: Final = 8
BLOCKS: Final = 400
"""Room in an engine."""
BLOCK_BYTES: Final = 2048
START_SECONDS_MAX: Final = 30.0
END_SECONDS_MAX: Final = 120.0
LIMITS: Final = {"mean": 1.1, "errors": 0}


def text_of(block: int) -> str:
    """A block's text: about 512 tokens."""
    return (f"{block:07x} " * (BLOCK_BYTES // 8))[:BLOCK_BYTES]


class Engine:
    """An OpenAI-compatible server that sleeps instead of computing."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._held: OrderedDict[str, None] = OrderedDict()
        self._turn = asyncio.Lock()
        self.decoding = 0
        self.port = 0

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Listens until the end."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 22)
        stack.callback(server.close)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /health"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                assert length is not None
                await self._answer(json.loads(await reader.readexactly(int(length[1]))), writer)
        writer.close()

    async def _answer(self, body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        messages = body["messages"]
        assert isinstance(messages, list)
        text = messages[0]["content"]
        blocks = [text[at : at + 7] for at in range(0, len(text), BLOCK_BYTES)]
        async with self._turn:
            await asyncio.sleep(self._prefill(blocks))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(_chunk(b'data: {"choices":[]}\n\n'))
        self.decoding += 1
        tokens = body["max_tokens"]
        assert isinstance(tokens, int)
        await asyncio.sleep(tokens * self._model.token)
        self.decoding -= 1
        usage = b'data: {"usage":{"prompt_tokens":%d,"completion_tokens":1}}\n\n' % (512 * len(blocks))
        writer.write(_chunk(usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _prefill(self, blocks: Sequence[str]) -> float:
        held, model = self._held, self._model
        depth = next((at for at, block in enumerate(blocks) if block not in held), len(blocks))
        for block in reversed(blocks):
            held[block] = None
            held.move_to_end(block)
        while len(held) > BLOCKS:
            held.popitem(last=False)
        return model.prefill(len(blocks) - depth, len(blocks)) * (1 + model.decoding * self.decoding)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def fleet(workers: int, model: Model, folder: Path) -> AsyncIterator[int]:
    """Engines, a Redis and a router with so many workers; the router's port."""
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(redis_server.running())
        engines = [Engine(model) for _ in range(ENGINES)]
        for engine in engines:
            await engine.start(stack)
        log = folder / f"router-{workers}.log"
        command = [sys.executable, "-m", "kvcommons_router", "--listen=127.0.0.1:0", f"--workers={workers}"]
        command += [f"--redis={redis.url}"]
        command += [
            f"--instance=name=e{at},url=http://127.0.0.1:{one.port},model=mock" for at, one in enumerate(engines)
        ]
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out)
        try:
            yield await _listening(log)
        finally:
            process.terminate()
            await process.wait()


async def _listening(log: Path) -> int:
    said = ""
    for _ in range(int(START_SECONDS_MAX / 0.05)):
        said = await asyncio.to_thread(log.read_text)
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", said)
        if found is not None:
            await asyncio.sleep(1.0)  # until the workers have asked the engines for their health
            return int(found[1])
        await asyncio.sleep(0.05)
    raise SystemExit(f"bench.policy.live: the router did not start:\n{said[-2000:]}")


class Client:
    """Asks one router for everything in a trace."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.seconds: list[float] = []
        self.errors = 0

    async def play(self, trace: Sequence[Request]) -> None:
        """Each request when it is due, whatever became of the others; to the last one's end."""
        loop = asyncio.get_running_loop()
        begun, tasks = loop.time(), []
        for request in trace:
            await asyncio.sleep(max(0.0, begun + request.at - loop.time()))
            tasks.append(asyncio.ensure_future(self._ask(request, begun + request.at)))
        _, late = await asyncio.wait(tasks, timeout=END_SECONDS_MAX)
        self.errors += len(late)
        for task in late:
            task.cancel()

    async def _ask(self, request: Request, due: float) -> None:
        loop = asyncio.get_running_loop()
        text = "".join([text_of(block) for block in request.blocks])
        fields = {"model": "mock", "messages": [{"role": "user", "content": text}], "stream": True}
        body = json.dumps(fields | {"max_tokens": request.answer_tokens}).encode()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
            first = await reader.readuntil(b"data: ")
            seconds = loop.time() - due
            rest = await reader.read()
            writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            self._failed(f"{type(error).__name__}: {error} {getattr(error, 'partial', b'')[:300]!r}")
            return
        if first.startswith(b"HTTP/1.1 200") and rest.endswith(b"0\r\n\r\n"):
            self.seconds.append(seconds)
        else:
            self._failed(f"{first[:300]!r} {rest[:700]!r}")

    def _failed(self, why: str) -> None:
        self.errors += 1
        print(f"bench.policy.live: {why}", file=sys.stderr)


async def run(trace: Sequence[Request], workers: Sequence[int], model: Model, folder: Path) -> list[Client]:
    """A client for each number of workers, all at once."""
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(fleet(count, model, folder)) for count in workers]
        clients = [Client(port) for port in ports]
        await asyncio.gather(*[client.play(trace) for client in clients])
    return clients


def main() -> int:
    """Runs it and prints its line; 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kind", choices=workloads.KINDS, default="chat")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the made-up trace")
    parser.add_argument("--speed", type=float, default=1.5, help="how many times as fast as it was made up")
    options = parser.parse_args()
    trace = [
        one._replace(at=one.at / options.speed)
        for one in workloads.make(options.kind, options.seed, options.seconds * options.speed)
    ]
    with tempfile.TemporaryDirectory(prefix="kvc-bench-") as folder:
        one, several = uvloop.run(run(trace, (1, options.workers), Model(), Path(folder)))
    figures: dict[str, object] = {"requests": len(trace), "errors": one.errors + several.errors}
    means = []
    for name, client in (("one", one), ("several", several)):
        times = [1000 * seconds for seconds in client.seconds] or [0.0]
        means.append(sum(times) / len(times))
        figures |= {f"{name}_mean_ms": means[-1], f"{name}_p99_ms": percentile(times, 99)}
    report("policy.live", figures, LIMITS, {"mean": means[1] / max(means[0], 1e-9)})
    return 1 if figures["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
