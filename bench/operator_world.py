"""A simulated cluster for the operator's benchmark: a real API server, scheduler and controllers; kwok plays the machines."""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import kube_reaper
from kube_apiserver import ALONE, ApiServer
from kube_binaries import Binaries
from kube_client import Client, kubeconfig_text
from kube_process import Process, wait_for
from operator_process import LOOPBACK, install_crds

from bench.operator_client import KeptClient
from bench.operator_pods import Pods

CONTROLLERS = ("daemonset", "deployment", "replicaset", "statefulset")
WRITERS = 8
NODES_SECONDS_MAX = 120.0
POOL_LABEL = "bench/pool"
OPERATOR_USER = "bench-operator"
# Of the operator alone, whose requests are counted.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [OPERATOR_USER]}, {"level": "None"}],
}
POD_ADDRESS = "127.200.0.1"
"""Of every pod: one stand-in answers for all cache nodes and routers."""
# Each may have some times its heap before it is swept: in a cluster of this size every one of them has cores of its own; here they share two
# with each other and the operator, and memory is what there is enough of.
MEMORY_FOR_TIME = {"GOGC": "800", "GOMEMLIMIT": "2GiB"}
Document = dict[str, Any]

# What kwok does with pods: ready as soon as they are on a machine, gone as soon as they are to go.
# By itself it plays four pods at a time, and everybody would wait for it.
STAGES = """\
apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokConfiguration
options:
  podPlayStageParallelism: 32
  nodePlayStageParallelism: 32
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata:
  name: machine
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - {key: .status.phase, operator: DoesNotExist}
  next:
    statusTemplate: |
      phase: Running
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata:
  name: ready
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.phase, operator: In, values: [Pending]}
  next:
    statusTemplate: |
      phase: Running
      podIP: ADDRESS
      podIPs: [{ip: ADDRESS}]
      startTime: {{ Now | Quote }}
      conditions:
      - {type: Initialized, status: "True", lastTransitionTime: {{ Now | Quote }}}
      - {type: ContainersReady, status: "True", lastTransitionTime: {{ Now | Quote }}}
      - {type: Ready, status: "True", lastTransitionTime: {{ Now | Quote }}}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        ready: true
        restartCount: 0
        state: {running: {startedAt: {{ Now | Quote }}}}
      {{ end }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata:
  name: gone
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: Exists}
  next:
    delete: true
"""


class World:
    """What runs, and ways to fill it."""

    def __init__(self, folder: Path, binaries: Binaries) -> None:
        self.folder = folder
        self.server = ApiServer(
            folder, binaries,
            flags=(*ALONE, "--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000"),
        )  # fmt: skip
        self.client = KeptClient(self.server)
        self.applied: list[Document] = []
        """Resources whose operator is measured."""
        self.binaries = binaries
        (folder / "audit-policy.yaml").write_text(json.dumps(AUDIT_POLICY))
        self.operator_token = self.server.add_user(OPERATOR_USER, "system:masters")
        self.operator_kubeconfig = folder / "operator.kubeconfig"
        self.operator_kubeconfig.touch(mode=0o600)
        self.operator_kubeconfig.write_text(kubeconfig_text(self.server.url, self.server.ca, self.operator_token))
        fast = ("--kube-api-qps=1000", "--kube-api-burst=2000", "--leader-elect=false", "--secure-port=0")
        config = f"--kubeconfig={self.server.kubeconfig}"
        self.parts = [
            Process(
                "kube-controller-manager",
                [binaries["kube-controller-manager"], config, *fast, f"--controllers={','.join(CONTROLLERS)}",
                 "--concurrent-deployment-syncs=20", "--concurrent-replicaset-syncs=20"],
                folder,
            ),
            Process("kube-scheduler", [binaries["kube-scheduler"], config, *fast], folder),
            Process(
                "kwok",
                [binaries["kwok"], config, "--manage-all-nodes", "--node-lease-duration-seconds=0",
                 f"--config={folder / 'kwok.yaml'}"],
                folder,
            ),
        ]  # fmt: skip

        for part in (self.server.etcd, self.server.apiserver, *self.parts):
            part.environment |= MEMORY_FOR_TIME

    def start(self) -> None:
        (self.folder / "kwok.yaml").write_text(STAGES.replace("ADDRESS", POD_ADDRESS))
        self.pods = Pods(POD_ADDRESS).start()
        self.server.start()
        install_crds(self.server)
        for part in self.parts:
            part.start()

    def stop(self) -> None:
        for part in reversed(self.parts):
            part.stop()
        self.server.stop()
        self.pods.stop()

    def each(self, work: Callable[[Client, Any], object], items: Sequence[Any]) -> None:
        """Several requests at once."""
        with ThreadPoolExecutor(WRITERS) as threads:
            list(threads.map(lambda item: work(self.client, item), items))

    def add_nodes(self, numbers: Sequence[int], pools: int) -> None:
        def add(server: Client, number: int) -> None:
            made = node(number, number % pools)
            server.request("POST", "/api/v1/nodes", made)
            path, merge = f"/api/v1/nodes/{made['metadata']['name']}", "application/merge-patch+json"
            server.request("PATCH", path, {"spec": {"taints": None}}, merge)
            server.request("PATCH", f"{path}/status", {"status": made["status"]}, merge)

        self.each(add, numbers)
        wait_for(self._nodes_run, "kwok has taken the machines over", NODES_SECONDS_MAX, every=1.0)

    def _nodes_run(self) -> bool:
        nodes = self.client.request("GET", "/api/v1/nodes")["items"]
        return all(one["status"].get("phase") == "Running" for one in nodes)

    def cpu_seconds(self) -> dict[str, float]:
        """What each part of the cluster has used so far."""
        parts = [self.server.etcd, self.server.apiserver, *self.parts]
        return {part.name: cpu_seconds(part.pid) for part in parts}


def node(number: int, pool: int) -> Document:
    """A machine of kwok's."""
    name = f"node-{number:04}"
    room = {"cpu": "64", "memory": "512Gi", "pods": "256", "nvidia.com/gpu": "8"}
    return {
        "metadata": {
            "name": name,
            "labels": {POOL_LABEL: f"pool-{pool}", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "status": {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]},
    }


@contextmanager
def world() -> Iterator[World]:
    """Everything runs; all ended and cleared afterwards."""
    binaries = Binaries()
    binaries.bring("etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler", "kwok")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvcommons-kube-bench-")))
        watcher = kube_reaper.Watcher(folder)
        stack.callback(watcher.close)
        made = World(folder, binaries)
        stack.callback(made.stop)
        made.start()
        yield made


class Sampler:
    """The memory of a process, as it was at most."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")

    def field(self, name: str) -> float:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) / 1024

    @property
    def rss_mb(self) -> float:
        return self.field("VmRSS")

    @property
    def peak_mb(self) -> float:
        return self.field("VmHWM")


def asked(world: World) -> int:
    """Requests of the operator so far, from the API server's own book."""
    with world.server.audit_log.open() as log:
        return sum(f'"username":"{OPERATOR_USER}"' in line for line in log)


def requests(world: World) -> list[tuple[str, int]]:
    """What the operator asked for so far: verb, resource and status, the most frequent first."""
    found: Counter[str] = Counter()
    with world.server.audit_log.open() as log:
        for line in filter(lambda line: f'"username":"{OPERATOR_USER}"' in line, log):
            event = json.loads(line)
            about = event.get("objectRef") or {}
            resource = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
            found[f"{event['verb']} {resource} {event.get('responseStatus', {}).get('code')}"] += 1
    return found.most_common()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
