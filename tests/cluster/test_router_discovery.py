"""The router against a real API server, with the rights that its ServiceAccount has in a cluster and no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kube_apiserver import ApiServer
from kube_client import MERGE_PATCH
from router_process import Process, router
from router_support import Call, Engine, chat, on_uvloop, plain, request

LABELS = {"kvcommons.io/deployment": "d", "app.kubernetes.io/component": "engine"}
SELECTOR = "kvcommons.io/deployment=d,app.kubernetes.io/component=engine"
ADDRESSES = "127.11.0"


class Pods:
    """Pods as a kubelet would keep them, which is not there."""

    def __init__(self, apiserver: ApiServer, namespace: str) -> None:
        self._apiserver = apiserver
        self._path = f"/api/v1/namespaces/{namespace}/pods"

    async def create(self, name: str, address: str, *, ready: bool = True) -> None:
        """A pod that runs."""
        body = {
            "metadata": {"name": name, "labels": LABELS},
            "spec": {"nodeName": "node-1", "containers": [{"name": "engine", "image": "engine"}]},
        }
        await self._ask("POST", self._path, body)
        await self.becomes(name, address, ready=ready)

    async def becomes(self, name: str, address: str, *, ready: bool, restarts: int = 0) -> None:
        """What its status says from now on."""
        container = {"name": "engine", "restartCount": restarts, "ready": ready, "image": "engine", "imageID": ""}
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [container],
        }
        await self._ask("PATCH", f"{self._path}/{name}/status", {"status": status}, MERGE_PATCH)

    async def delete(self, name: str, *, grace_seconds: int) -> None:
        """A pod is to end within a time; with none, it is gone."""
        await self._ask("DELETE", f"{self._path}/{name}", {"gracePeriodSeconds": grace_seconds})

    async def _ask(self, *arguments: Any) -> Any:
        return await asyncio.to_thread(self._apiserver.request, *arguments)


def allow_pods(apiserver: ApiServer, namespace: str) -> None:
    """What the chart gives the router's ServiceAccount: to read the pods of one namespace."""
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "router"}
    subject = {"kind": "ServiceAccount", "name": "router", "namespace": namespace}
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    apiserver.request("POST", f"{path}/roles", {"metadata": {"name": "router"}, "rules": rules})
    binding = {"metadata": {"name": "router"}, "roleRef": role, "subjects": [subject]}
    apiserver.request("POST", f"{path}/rolebindings", binding)


@asynccontextmanager
async def engines_at(port: int, *names: str) -> AsyncIterator[list[Engine]]:
    """Engines on addresses of their own and one port."""
    engines = [Engine(name, host=f"{ADDRESSES}.{at + 1}", port=port) for at, name in enumerate(names)]
    for engine in engines:
        engine.port = engines[0].port
        await engine.start()
    try:
        yield engines
    finally:
        for engine in engines:
            await engine.stop()


@asynccontextmanager
async def discovering(
    apiserver: ApiServer, namespace: str, port: int, folder: Path, *flags: str
) -> AsyncIterator[Process]:
    """A router of two workers with its ServiceAccount's token."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    await asyncio.to_thread(apiserver.request, "POST", path, {"metadata": {"name": "router"}})
    (folder / "token").write_text(await asyncio.to_thread(apiserver.account_token, namespace, "router"))
    kubernetes = {
        "namespace": namespace,
        "selector": SELECTOR,
        "port": port,
        "model": "m",
        "api": apiserver.url,
        "token_file": str(folder / "token"),
        "ca_file": str(apiserver.ca),
    }
    environment = {"KVCOMMONS_ROUTER__KUBERNETES": json.dumps(kubernetes)}
    async with router([], "--workers=2", "--policy=roundRobin", *flags, environment=environment) as process:
        yield process


async def answered_by(process: Process, names: set[str], *, seconds_max: float) -> None:
    """Waits until these engines answer, and no other; no request may fail meanwhile."""
    end = asyncio.get_running_loop().time() + seconds_max
    found: set[str] = set()
    while found != names:
        replies = [await process.ask(chat(f"text {number}")) for number in range(12)]
        assert {reply.status for reply in replies} == {200}
        found = {reply.json["engine"] for reply in replies}
        assert asyncio.get_running_loop().time() < end, f"{found} answer instead of {names}"


@on_uvloop
async def test_pods_of_a_real_api_server_are_the_fleet(apiserver: ApiServer, namespace: str, tmp_path: Path) -> None:
    """Refused, then allowed; a pod serves while it is ready, drains when it is deleted, and outlives the API server."""
    going = asyncio.Event()

    async def stream_until(call: Call) -> None:
        if "stream" not in call.json:
            await plain(call)
            return
        await call.begin_stream()
        await call.chunk(b"first")
        await going.wait()
        await call.end_stream()

    async with engines_at(0, "a", "b") as engines:
        a, b = engines
        a.script = b.script = stream_until
        pods = Pods(apiserver, namespace)
        async with discovering(apiserver, namespace, a.port, tmp_path) as process:
            await process.shows("is the ServiceAccount allowed to get, list and watch pods there?")
            assert (await process.ask(chat())).error["code"] == "no_instance_ready"
            await asyncio.to_thread(allow_pods, apiserver, namespace)
            await pods.create("a", a.host)
            await process.shows(f"a (http://{a.host}:{a.port}) gets requests")
            await pods.create("b", b.host, ready=False)
            await answered_by(process, {"a"}, seconds_max=1.0)
            await pods.becomes("b", b.host, ready=True)
            await process.shows(f"b (http://{b.host}:{b.port}) gets requests")
            await answered_by(process, {"a", "b"}, seconds_max=1.0)
            streams = [await process.client() for _ in range(8)]
            for stream in streams:
                await stream.send(request(chat(stream=True)))
                await stream.head()
            assert sum("stream" in call.json for call in a.calls) >= 1
            await pods.delete("a", grace_seconds=60)
            await process.shows("a is leaving")
            await answered_by(process, {"b"}, seconds_max=1.0)
            going.set()
            assert {await stream.rest_of_chunks() for stream in streams} == {b"5\r\nfirst\r\n0\r\n\r\n"}
            await pods.delete("a", grace_seconds=0)
            await process.shows("a has left")
            await asyncio.to_thread(apiserver.stop_apiserver)
            await answered_by(process, {"b"}, seconds_max=5.0)
            await asyncio.to_thread(apiserver.start_apiserver)
            await pods.create("a", a.host)
            await asyncio.to_thread(apiserver.expire)
            await answered_by(process, {"a", "b"}, seconds_max=15.0)
            metrics = await process.metrics()
            assert metrics['discovery_errors_total{reason="refused"}'] >= 1
            assert metrics["worker_restarts_total"] == 0
