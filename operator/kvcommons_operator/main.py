"""Run the operator: reconciles KVCachePools and InferenceDeployments of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import secrets
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import uvloop
from kubernetes.aio.client import Configuration
from kvcommons_core.errors import ConfigurationError, StartRefusedError
from kvcommons_core.settings import describe, flags_of, load_settings

from kvcommons_operator import http, release
from kvcommons_operator.kube import connect
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.election import Election, Term
from kvcommons_operator.kube.errors import KubeError
from kvcommons_operator.leader import Leader
from kvcommons_operator.metrics import OperatorMetrics
from kvcommons_operator.observed import Install
from kvcommons_operator.reconcile.root import root_secret
from kvcommons_operator.settings import OperatorSection, OperatorSettings

REFUSED_STATUS: Final = 2
LOST_STATUS: Final = 3
"""The lease was lost: the kubelet starts us again, as a candidate."""
FAILED_STATUS: Final = 1
SECTION: Final = "operator"
NAMESPACE_DEFAULT: Final = "kvcommons-system"
STOP_SECONDS_MAX: Final = 8.0
USAGE: Final = """usage: kvcommons operator [--config FILE] [--namespace NS]... [--all-namespaces] [--SETTING VALUE]...
       kvcommons operator --release    (take our finalizers off every resource, and end: before the operator is removed)

Settings come from the file (TOML or JSON), the environment (KVCOMMONS_OPERATOR__WORKERS=16) and the flags below; the later wins.

  --config                             A file with the table [operator]
  --namespace                          Reconcile in this namespace only; may be given several times
  --all-namespaces                     Reconcile in all namespaces (the default)
  --own-namespace                      The operator's own namespace (operator.namespace)
"""

logger = logging.getLogger("kvcommons_operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, 1 (a part failed), 2 (refused to start), 3 (the lease was lost)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words:
        sys.stdout.write(USAGE + settings_help() + "\n")
        return 0
    try:
        only_release = "--release" in words
        settings = read_settings([word for word in words if word != "--release"]).operator
        configure_logs(settings.log_level, as_json=settings.log_json)
        if only_release:
            return asyncio.run(release.release(settings))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Process(settings).run())
    except (ConfigurationError, StartRefusedError) as error:
        sys.stderr.write(f"kvcommons operator: {error}\n")
        return REFUSED_STATUS


def settings_help() -> str:
    """The flags of the settings, without those whose names mean something else on this command line."""
    lines = describe(OperatorSettings, SECTION).splitlines()
    return "\n".join(line for line in lines if line.split()[0] != "--namespace")


def read_settings(words: Sequence[str]) -> OperatorSettings:
    """:raises ConfigurationError: for what is unknown or wrong, naming the remedy."""
    rest: list[str] = []
    file: Path | None = None
    namespaces: list[str] = []
    everywhere = False
    queue = list(words)
    while queue:
        name, equals, value = queue.pop(0).partition("=")
        if name not in ("--config", "--namespace", "--own-namespace", "--all-namespaces"):
            rest.append(name + equals + value)
            continue
        if name == "--all-namespaces":
            everywhere = True
            continue
        if not equals and not queue:
            raise ConfigurationError(name, "", "give it a value")
        value = value if equals else queue.pop(0)
        match name:
            case "--config":
                file = Path(value)
            case "--namespace":
                namespaces.append(value)
            case _:
                rest += ["--operator.namespace", value]
    if everywhere and namespaces:
        raise ConfigurationError("--all-namespaces", ", ".join(namespaces), "give it or --namespace, not both")
    flags, strangers = flags_of(OperatorSettings, rest, SECTION)
    if strangers:
        raise ConfigurationError("arguments", " ".join(strangers), "settings are given as --NAME VALUE")
    if namespaces or everywhere:
        flags["operator.namespaces"] = ",".join(namespaces)
    return load_settings(OperatorSettings, file=file, flags=flags)


class Process:
    """One candidate, and the leader that it becomes."""

    def __init__(self, settings: OperatorSection) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._metrics = OperatorMetrics()
        self._election: Election | None = None
        self._leader: Leader | None = None
        self._identity = settings.identity or f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self._namespace = settings.namespace or connect.own_namespace(NAMESPACE_DEFAULT)

    async def run(self) -> int:
        """Returns the exit status."""
        settings = self._settings
        self._take_signals()
        configuration = await connect.load(settings.kubeconfig, settings.kube_context)
        client = KubeClient(connect.client_of(configuration), meter=self._metrics)
        runner, port = await http.serve(
            settings.http_host, settings.http_port, self._metrics, self._readiness, self._health
        )
        logger.info("started", extra={"identity": self._identity, "http_port": port})
        try:
            return await self._compete(client, configuration)
        finally:
            await runner.cleanup()
            await client.close()

    async def _compete(self, client: KubeClient, configuration: Configuration) -> int:
        settings = self._settings
        election = Election(
            client, self._namespace, settings.lease_name, self._identity, term_of(settings.lease_seconds)
        )
        self._election = election
        if not await self._unless_stopped(election.acquire()):
            return 0
        self._metrics.leader.set(1)
        lost = asyncio.create_task(election.lead(), name="lease")
        work = asyncio.create_task(self._lead(client, configuration), name="leader")
        done, _ = await asyncio.wait((lost, work), return_when=asyncio.FIRST_COMPLETED)
        self._metrics.leader.set(0)
        if lost in done:
            # Nothing of a former leader may go on: not even an orderly end, which could write.
            logger.error("the lease is lost; the process ends")
            logging.shutdown()
            end_now(LOST_STATUS)
        lost.cancel()
        await election.release()
        failure = work.exception()
        if failure is not None:
            logger.error("the operator ends: a part of it has failed", exc_info=failure)
            return FAILED_STATUS
        return 0

    async def _lead(self, client: KubeClient, configuration: Configuration) -> None:
        asked = asyncio.create_task(self._root_secret(client), name="root secret")
        if not await self._unless_stopped(asked):
            return
        install = install_of(self._settings, self._namespace, asked.result())
        leader = Leader(client, configuration, self._settings, install, self._identity, self._metrics)
        self._leader = leader
        # kopf takes the signals for itself when it starts: they are ours, so that the lease is released in time.
        work = asyncio.create_task(leader.run(self._stopping, self._take_signals), name="work")
        if not await self._unless_stopped(asyncio.shield(work)):
            if not leader.ready.is_set():
                work.cancel()  # it has done nothing that would need an end
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(work, STOP_SECONDS_MAX)
        elif work.done():
            await work

    async def _root_secret(self, client: KubeClient) -> bytes:
        settings = self._settings
        while True:
            try:
                return await root_secret(client, self._namespace, settings.root_secret_name, settings.root_secret_file)
            except KubeError as error:
                logger.warning("the root secret cannot be had: %s", error)
                await asyncio.sleep(5.0)

    async def _unless_stopped(self, work: object) -> bool:
        """Whether the work ended before we were told to stop. Its own failure is raised."""
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]  # a coroutine or a future
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            task.cancel()
            return False
        finally:
            stop.cancel()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    def _readiness(self) -> http.State:
        """A standby is ready: it can take over at once."""
        election, leader = self._election, self._leader
        if election is None or not election.leading:
            return {"ok": election is not None, "role": "standby", "leader": election.holder if election else ""}
        ready = leader is not None and leader.ready.is_set()
        return {"ok": ready, "role": "leader", "doing": leader.doing if leader is not None else "starting"}

    def _health(self) -> http.State:
        return {"ok": True, "identity": self._identity}


def end_now(status: int) -> None:
    """Without finalizers, handlers or threads: a former leader has nothing left to say."""
    import os

    sys.stderr.flush()
    os._exit(status)


def term_of(lease_seconds: int) -> Term:
    """Renewed four times a lease, given up after two thirds of it."""
    return Term(
        lease_seconds=lease_seconds,
        renew_seconds_max=lease_seconds * 2 / 3,
        renew_every_seconds=lease_seconds / 4,
        retry_seconds=min(2.0, lease_seconds / 8),
    )


def install_of(settings: OperatorSection, namespace: str, secret: bytes) -> Install:
    """What plans need to know of this installation."""
    return Install(
        version=importlib.metadata.version("kvcommons"),
        namespace=namespace,
        root_secret=secret,
        node_image=settings.node_image,
        router_image=settings.router_image,
        redis_image=settings.redis_image,
        engine_images=settings.engine_images,
        image_pull_policy=settings.image_pull_policy,
        image_pull_secrets=settings.image_pull_secrets,
        cluster_domain=settings.cluster_domain,
        operator_labels=settings.pod_labels,
        identity=f"{namespace}/{settings.lease_name}",
        metrics_namespaces=settings.metrics_namespaces,
    )


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, what `extra` carried, the exception."""

    STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({name: value for name, value in vars(record).items() if name not in self.STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure_logs(level: str, *, as_json: bool, stream: IO[str] | None = None) -> None:
    """One handler for the whole process; `level` in lower case."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # kopf tells of every object that it sees; that is worth a line only to who debugs it.
    logging.getLogger("kopf").setLevel(logging.WARNING if level != "debug" else logging.DEBUG)


if __name__ == "__main__":
    sys.exit(main())
