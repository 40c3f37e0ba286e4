"""A model served on a test cluster by what the chart has installed: a pool, a deployment of two real engines, its router."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kube_product
from kube_chat import Client
from kube_cluster import Cluster, condition
from kube_node import KUBELET_FOLDER
from kube_process import wait_for
from kvcommons_operator import names

POOL, NAME, MODEL = "commons", "smollm2", "smollm2"
ENGINES = 2
READY_SECONDS_MAX = 420
API = "/apis/kvcommons.io/v1alpha1/namespaces"
DISK_PATH = f"{KUBELET_FOLDER}/disk0"  # of the machine alone: each has a folder of its own there
LEVEL = {"sidecar": "restricted", "perNode": "privileged"}
# float32 and one thread: bfloat16 gives another token now and then between cold and warm, by the engine's own cache too.
ARGUMENTS = (
    "--dtype=float32",
    "--seed=0",
    "--enforce-eager",
    "--max-model-len=4096",
    "--max-num-batched-tokens=4096",
    "--disable-uvicorn-access-log",
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CACHE_ROOT": kube_product.ENGINE_CACHE,  # else each asks for a minute what the model can do
    "VLLM_SERVER_DEV_MODE": "1",  # /reset_prefix_cache
}
# The worker in the process of the engine's core, where it has one of its own by default: a start costs a third less.
TOGETHER = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def pool(placement: str) -> dict[str, Any]:
    """With a disk behind the memory, where there is one cache node a machine."""
    disks = [{"type": "disk", "capacity": "1Gi", "path": DISK_PATH}] if placement == "perNode" else []
    tiers = {"memory": {"capacity": "512Mi"}, "secondary": disks}
    spec = {"placement": placement, "tiers": tiers, "index": {"managed": {}}}
    return {"apiVersion": "kvcommons.io/v1alpha1", "kind": "KVCachePool", "metadata": {"name": POOL}, "spec": spec}


def deployment(name: str = NAME, environment: Mapping[str, str] = ENVIRONMENT) -> dict[str, Any]:
    """Two engines that may not share a node."""
    volumes, mounts = kube_product.engine_volumes()
    labels = {"matchLabels": {"kvcommons.io/deployment": name, "app.kubernetes.io/component": "engine"}}
    apart = {"labelSelector": labels, "topologyKey": "kubernetes.io/hostname"}
    spec = {
        "model": {"name": MODEL, "source": {"pvc": {"claimName": "model"}}},
        "engine": {
            "image": kube_product.ENGINE_IMAGE,
            "args": list(ARGUMENTS),
            "env": [{"name": name, "value": value} for name, value in environment.items()],
            "sharedMemory": "256Mi",  # the engine's processes ask for 160
        },
        "replicas": ENGINES,
        "poolRef": {"name": POOL},
        "drainSeconds": 20,
        "probes": {"startup": {"periodSeconds": 3, "failureThreshold": 200}, "readiness": {"periodSeconds": 2}},
        "podTemplate": {
            "volumes": volumes,
            "volumeMounts": mounts,
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
        },
    }
    return {
        "apiVersion": "kvcommons.io/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": name},
        "spec": spec,
    }


@dataclass
class Served:
    """What is served, in a namespace of its own."""

    cluster: Cluster
    placement: str
    stopped: bool = False

    @property
    def namespace(self) -> str:
        return f"e2e-{self.placement.lower()}"

    def start(self) -> None:
        """Returns when the deployment is Ready."""
        for node in self.cluster.nodes:
            (node.folder / "kubelet" / Path(DISK_PATH).name).mkdir(exist_ok=True)
        labels = {"pod-security.kubernetes.io/enforce": LEVEL[self.placement]}
        self.cluster.create_namespace(self.namespace, labels)
        model = kube_product.HostFolder("model", kube_product.model_folder(), "/models")
        for folder in (*kube_product.host_folders(), model):
            self.cluster.apply(*folder.manifests(self.namespace))
        hiding = kube_product.hiding_manifest(self.namespace)
        environment = ENVIRONMENT | TOGETHER if self.placement == "perNode" else ENVIRONMENT
        ours = (pool(self.placement), deployment(environment=environment))
        self.cluster.apply(hiding, *ours, namespace=self.namespace)
        self.wait_ready()

    def stop(self) -> None:
        """Deletes what was asked for, waits until the operator has cleared it, and the engines' memory is free. Once is enough."""
        if self.stopped:
            return
        self.stopped = True
        for kind, name in (("inferencedeployment", NAME), ("kvcachepool", POOL)):
            options = ("-n", self.namespace, "--ignore-not-found", "--wait", "--timeout=120s")
            self.cluster.kubectl("delete", kind, name, *options)
        wait_for(lambda: not self.pods("engine"), "no engine", 120.0, every=0.5)
        self.cluster.kubectl("delete", "namespace", self.namespace, "--wait=false")

    def object(self, plural: str = "inferencedeployments", name: str = NAME) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.request("GET", f"{API}/{self.namespace}/{plural}/{name}")
        return found

    def condition(self, kind: str) -> str:
        return condition(self.object(), kind)

    def wait_condition(self, kind: str, status: str, seconds_max: float) -> None:
        """Until a condition of the deployment has this status; else what it says, and the pods."""

        def reached() -> bool:
            return self.condition(kind) == status

        try:
            wait_for(reached, f"{kind}={status}", seconds_max, every=0.5)
        except Exception as error:
            error.add_note(self.account())
            raise

    def wait_ready(self, engines: int = ENGINES) -> None:
        """Until it says so and all its engines are."""
        self.wait_condition("Ready", "True", READY_SECONDS_MAX)
        wait_for(lambda: len(self.ready_engines()) == engines, f"{engines} engines", READY_SECONDS_MAX, every=0.5)

    def account(self) -> str:
        """What is there, for a failure's message."""
        parts = [
            self.cluster.kubectl("get", "kvcp,ifd,pods", "-o", "wide", "-n", self.namespace),
            str(self.object().get("status")),
            self.cluster.kubectl("get", "events", "-n", self.namespace, "--sort-by=.lastTimestamp")[-4_000:],
        ]
        for pod in self.cluster.pods(self.namespace):
            name = pod["metadata"]["name"]
            logs = ("logs", name, "-n", self.namespace, "--all-containers", "--tail=30", "--ignore-errors")
            parts.append(f"--- {name}\n{self.cluster.kubectl(*logs)[-3_000:]}")
        return "\n".join(parts)

    def pods(self, component: str) -> list[dict[str, Any]]:
        return self.cluster.pods(self.namespace, f"app.kubernetes.io/component={component}")

    def ready_engines(self) -> list[dict[str, Any]]:
        engines = [pod for pod in self.pods("engine") if "deletionTimestamp" not in pod["metadata"]]
        return [pod for pod in engines if condition(pod, "Ready") == "True"]

    def router(self) -> Client:
        """A client of the routers' Service."""
        return Client(self.cluster.service_address(self.namespace, NAME), 8000, MODEL)

    def engine(self, pod: dict[str, Any]) -> Client:
        return Client(pod["status"]["podIP"], 8000, MODEL)

    def node_pod(self, engine: dict[str, Any]) -> dict[str, Any]:
        """The pod of the cache node that an engine is attached to."""
        if self.placement == "sidecar":
            return engine
        on = engine["spec"]["nodeName"]
        return next(pod for pod in self.pods("cache-node") if pod["spec"]["nodeName"] == on)

    def fetched_from_peers(self, engine: dict[str, Any]) -> float:
        """Shards that this engine's cache node has fetched from others."""
        text = Client(self.node_pod(engine)["status"]["podIP"], 9470, MODEL).get("/metrics")[1]
        found = re.findall(r'^kvcommons_node_peer_fetches_total\{outcome="fetched"\} ([0-9.e+]+)$', text, re.MULTILINE)
        return sum(map(float, found))

    def reset_engines(self) -> None:
        """Every engine forgets its own cache; what is reused then comes from the commons."""
        for pod in self.ready_engines():
            status, text = self.engine(pod).post("/reset_prefix_cache")
            assert status == 200, text

    def requests_served(self) -> dict[str, float]:
        """By engine pod: how many requests it has finished."""
        found = {}
        for pod in self.ready_engines():
            text = self.engine(pod).get("/metrics")[1]
            counts = re.findall(r"^vllm:request_success_total\{[^}]*\} ([0-9.e+]+)$", text, re.MULTILINE)
            found[pod["metadata"]["name"]] = sum(map(float, counts))
        return found

    def cache_node(self, machine: str) -> dict[str, Any]:
        """The pod of the cache node on a machine (placement perNode); KeyError while there is none that stays."""
        found = {
            pod["spec"].get("nodeName"): pod
            for pod in self.pods("cache-node")
            if "deletionTimestamp" not in pod["metadata"]
        }
        return found[machine]

    def node_metric(self, machine: str, name: str) -> float:
        """Sum of a metric of the cache node on a machine, over its labels."""
        pod = self.cache_node(machine)
        text = Client(pod["status"]["podIP"], names.CONTROL_PORT, MODEL).get("/metrics")[1]
        return sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? ([0-9.e+]+)$", text, re.MULTILINE)))

    def broken_answers(self) -> float:
        """How many answers routers have seen break off, by their own count."""
        texts = [self.engine(pod).get("/metrics")[1] for pod in self.pods("router")]
        counts = [
            re.findall(r'^kvcommons_router_\S*outcome="broken"\S* ([0-9.e+]+)$', text, re.MULTILINE) for text in texts
        ]
        return sum(float(count) for found in counts for count in found)


PROMPTS = tuple(f"Question {number}: what is {number} plus {number}?" for number in range(6))
TOKENS = 12


def known(served: Served) -> list[str]:
    """The answers to all prompts, before anything is broken."""
    outcomes = [served.router().streamed(text, number, TOKENS) for number, text in enumerate(PROMPTS)]
    assert all(outcome.done for outcome in outcomes), outcomes
    return [outcome.text for outcome in outcomes]
