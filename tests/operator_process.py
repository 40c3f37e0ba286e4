"""The operator as a process against a real API server, and the resources that tests make."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError

import yaml
from kube_apiserver import ApiServer, free_port
from kube_client import ApiError
from kube_process import Process, wait_for

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
GROUP = "/apis/kvcommons.io/v1alpha1"
SECONDS_MAX = 40.0
LOOPBACK = "127.0.0.1"


def install_crds(apiserver: ApiServer) -> None:
    """Applies crds/, and waits until they are served."""
    manifests = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "crds").glob("*.yaml"))]
    apiserver.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    names = [f"crd/{manifest['metadata']['name']}" for manifest in manifests]
    apiserver.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")


class Operator:
    """One `kvcommons operator`. Starts ready to be waited for; stopped by its own id."""

    def __init__(
        self,
        apiserver: ApiServer,
        folder: Path,
        name: str = "operator",
        kubeconfig: Path | None = None,
        python_path: str = "",
        **settings: object,
    ) -> None:
        self.port = free_port(LOOPBACK)
        given: dict[str, object] = {
            "kubeconfig": kubeconfig or apiserver.kubeconfig,
            "http_host": LOOPBACK,
            "http_port": self.port,
            "lease_seconds": 4,
            "identity": name,
            "log_level": "debug",
            **settings,
        }
        environment = {f"KVCOMMONS_OPERATOR__{key.upper()}": _text(value) for key, value in given.items()}
        if python_path:
            environment["PYTHONPATH"] = python_path
        command = [sys.executable, "-P", "-m", "kvcommons_operator"]
        self.process = Process(name, command, folder, environment)

    def start(self) -> Operator:
        self.process.start()
        return self

    def stop(self) -> None:
        self.process.stop()

    @property
    def log(self) -> str:
        return self.process.log.read_text(errors="replace")

    def ready(self, role: str = "leader") -> Operator:
        """Waits until it leads and reconciles, or stands by."""
        self.until(lambda: (state := self.state()).get("ok") and state.get("role") == role, f"{role} is ready")
        return self

    def until(self, condition: Callable[[], T | None], what: str, seconds_max: float = SECONDS_MAX) -> T:
        def checked() -> T | None:
            assert self.process.alive, f"{self.process.name} has ended:\n{self.log[-3_000:]}"
            return condition()

        return wait_for(checked, what, seconds_max)

    def state(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/readyz", timeout=5) as answer:
                return dict(json.load(answer))
        except URLError as error:
            if hasattr(error, "read"):
                with error:  # type: ignore[attr-defined]  # an HTTPError is a response
                    return dict(json.loads(error.read()))
            return {}

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as they stand in the text."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/metrics", timeout=5) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def total(self, prefix: str) -> float:
        return sum(value for name, value in self.metrics().items() if name.startswith(prefix))


class Operators:
    """Those of one namespace: its Lease and its root secret are there too."""

    def __init__(self, apiserver: ApiServer, namespace: str, folder: Path) -> None:
        self.apiserver, self.namespace, self.folder = apiserver, namespace, folder
        self.all: list[Operator] = []

    def start(self, name: str = "operator", **settings: Any) -> Operator:
        given = {"namespace": self.namespace, "namespaces": self.namespace, **settings}
        made = Operator(self.apiserver, self.folder, name, **given)
        self.all.append(made)
        return made.start()

    def stop(self) -> None:
        for one in self.all:
            one.stop()
            print(f"--- {one.process.name}\n{one.log[-20_000:]}")  # noqa: T201 - pytest shows it with a failure


class Attendant:
    """One operator and the namespaces that it looks after: a start costs more than most tests that need one, and each of those takes
    a namespace that no other has."""

    def __init__(self, apiserver: ApiServer, name: str, count: int, folder: Path, **settings: Any) -> None:
        self.apiserver = apiserver
        self._made = [f"{name}-{number}" for number in range(count + 1)]
        for namespace in self._made:
            apiserver.create_namespace(namespace)
        home, *self._free = self._made
        self.operators = Operators(apiserver, home, folder)
        self.operator = self.operators.start("attendant", namespaces=",".join(self._free), **settings).ready()

    def place(self) -> Place:
        """One of its namespaces, for the asking test alone."""
        return Place(self.apiserver, self._free.pop(0))

    def stop(self) -> None:
        self.operators.stop()
        for namespace in self._made:
            self.apiserver.request("DELETE", f"/api/v1/namespaces/{namespace}")


class Place:
    """One namespace of an API server, as tests look at it."""

    def __init__(self, apiserver: ApiServer, namespace: str) -> None:
        self.apiserver, self.namespace = apiserver, namespace

    def path(self, kind: str, name: str = "", subresource: str = "") -> str:
        """`kind` as PLURAL of the core group, or GROUP/VERSION/PLURAL."""
        group, _, plural = kind.rpartition("/")
        parts = [f"/apis/{group}" if group else "/api/v1", "namespaces", self.namespace, plural, name, subresource]
        return "/".join(part for part in parts if part)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return find(self.apiserver, self.path(kind, name))

    def have(self, kind: str, name: str) -> dict[str, Any]:
        """Waits until it is there."""
        return wait_for(lambda: self.get(kind, name), f"{kind} {name}", SECONDS_MAX)

    def list(self, kind: str) -> list[dict[str, Any]]:
        return list(self.apiserver.request("GET", self.path(kind))["items"])

    def merge(self, kind: str, name: str, change: Mapping[str, Any], subresource: str = "") -> dict[str, Any]:
        content = "application/merge-patch+json"
        return dict(self.apiserver.request("PATCH", self.path(kind, name, subresource), change, content))

    def create(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.apiserver.request("POST", self.path(kind), body))

    def delete(self, kind: str, name: str) -> None:
        self.apiserver.request("DELETE", self.path(kind, name))

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.apiserver.apply(*manifests, namespace=self.namespace)

    def until(
        self,
        kind: str,
        name: str,
        holds: Callable[[dict[str, Any]], object],
        what: str,
        seconds_max: float = SECONDS_MAX,
    ) -> dict[str, Any]:
        """Waits until the object is there and so."""

        def checked() -> dict[str, Any] | None:
            found = self.get(kind, name)
            return found if found is not None and holds(found) else None

        return wait_for(checked, f"{kind} {name}: {what}", seconds_max)

    def gone(self, kind: str, name: str, seconds_max: float = SECONDS_MAX) -> None:
        wait_for(lambda: self.get(kind, name) is None, f"{kind} {name} is gone", seconds_max)

    def reason(self, kind: str, name: str, condition_type: str, reason: str) -> dict[str, Any]:
        """Waits until a condition has that reason."""
        return self.until(kind, name, lambda it: condition(it, condition_type).get("reason") == reason, reason)


POOLS = "kvcommons.io/v1alpha1/kvcachepools"
DEPLOYMENTS_OWN = "kvcommons.io/v1alpha1/inferencedeployments"
ROLES_OWN = "kvcommons.io/v1alpha1/inferenceroles"
DAEMON_SETS = "apps/v1/daemonsets"
DEPLOYMENTS = "apps/v1/deployments"
STATEFUL_SETS = "apps/v1/statefulsets"


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def pool(name: str = "pool", **spec: Any) -> dict[str, Any]:
    return _resource("KVCachePool", name, {"placement": "perNode", "tiers": {"memory": {"capacity": "1Gi"}}, **spec})


def deployment(name: str = "chat", pool_name: str | None = "pool", **spec: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": {"name": "smollm2", "source": {"pvc": {"claimName": "models"}}},
        "engine": {"image": "vllm:0.32.0"},
        **spec,
    }
    if pool_name is not None:
        given.setdefault("poolRef", {"name": pool_name})
    return _resource("InferenceDeployment", name, given)


def _resource(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "kvcommons.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}


def find(apiserver: ApiServer, path: str) -> dict[str, Any] | None:
    """An object, or None where there is none."""
    try:
        found: dict[str, Any] = apiserver.request("GET", path)
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    return found


def condition(resource: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    """One condition of a resource; empty where there is none."""
    told = ((resource or {}).get("status") or {}).get("conditions") or []
    return next((one for one in told if one["type"] == kind), {})
