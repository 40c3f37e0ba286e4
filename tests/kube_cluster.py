"""A real cluster on this machine: an API server, the controllers, the scheduler, DNS, and two nodes. Needs root."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kube_dns
import kube_images
from kube_apiserver import ApiServer
from kube_binaries import Binaries
from kube_client import ApiError
from kube_node import PAUSE_IMAGE, Network, Node, cgroup_folders, cni_folder
from kube_process import Process, wait_for

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "pause",
    "coredns",
)
# What the distribution has to bring: (program or what is looked for, package of Debian and Ubuntu).
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "ctr": "containerd",
    "ip": "iproute2",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
CNI_PACKAGE = "containernetworking-plugins"
READY_SECONDS_MAX = 120.0
NUMBER_FIRST, NUMBERS = 130, 100


def missing_packages() -> list[str]:
    """Packages that this machine lacks for real nodes."""
    missing = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    return sorted(missing | ({CNI_PACKAGE} if cni_folder() is None else set()))


def obstacle() -> str | None:
    """Why no real nodes can run here and what to do about it; None where they can."""
    if os.geteuid() != 0:
        return "real kubelets need root (namespaces, mounts, control groups): run the tests as root, or leave these out"
    missing = missing_packages()
    if missing:
        return (
            f"real kubelets need {', '.join(missing)}: apt-get install -y --no-install-recommends {' '.join(missing)}"
        )
    return None


def free_network() -> Network:
    """A 10.N.0.0/16 that this machine has no address in and no route to."""
    done = subprocess.run(["ip", "-4", "route", "show", "table", "all"], capture_output=True, text=True, check=True)
    for offset in range(NUMBERS):
        number = NUMBER_FIRST + (os.getpid() + offset) % NUMBERS
        if f"10.{number}." not in done.stdout:
            return Network(number)
    raise AssertionError("no 10.N.0.0/16 is free on this machine")


class Wires:
    """The switch between the nodes and this machine: a bridge in a network namespace of its own, which no firewall rule touches."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.holder = Process("switch", ["unshare", "--net", "sleep", "infinity"], folder)
        self.card = f"kvc{network.number}h"

    def start(self) -> None:
        self.holder.start()
        mine = Path("/proc/self/ns/net").readlink()
        theirs = Path(f"/proc/{self.holder.pid}/ns/net")
        wait_for(lambda: theirs.readlink() != mine, "the switch's namespace", 10.0)
        self._inside("ip", "link", "add", "switch", "type", "bridge")
        self._inside("ip", "link", "set", "switch", "up")
        self.plug(self.card, None)
        run("ip", "address", "add", f"{self.network.host}/24", "dev", self.card)
        run("ip", "link", "set", self.card, "up")

    def _inside(self, *command: str) -> None:
        run("nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--", *command)

    def plug(self, card: str, pid: int | None) -> None:
        """A cable: one end in the switch, the other in a node as eth0, or here."""
        port = f"{card}p"
        run("ip", "link", "add", card, "type", "veth", "peer", "name", port, "netns", str(self.holder.pid))
        self._inside("ip", "link", "set", port, "master", "switch", "up")
        if pid is not None:
            run("ip", "link", "set", card, "netns", str(pid), "name", "eth0")

    def route(self, destination: str, gateway: str) -> None:
        run("ip", "route", "replace", destination, "via", gateway)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Cluster(ApiServer):
    """Two nodes, `node-1` and `node-2`, and all that a cluster needs; addresses of pods and Services answer from here."""

    def __init__(self, folder: Path, binaries: Binaries) -> None:
        self.network = free_network()
        self.wires = Wires(self.network, folder)
        self.wires.start()
        flags = (
            "--kubelet-preferred-address-types=InternalIP",  # logs and exec: nobody resolves a node's name here
            f"--kubelet-client-certificate={folder / 'kubelet-client.crt'}",
            f"--kubelet-client-key={folder / 'kubelet-client.key'}",
        )
        super().__init__(folder, binaries, self.network.host, self.network.services, flags)
        names = ("node-1", "node-2")
        self.nodes = [Node(name, index, self.network, folder, binaries) for index, name in enumerate(names, 1)]
        self._helpers = [
            Process("kube-controller-manager", self._controller_command(), folder),
            Process("kube-scheduler", self._scheduler_command(), folder),
        ]

    def _controller_command(self) -> list[str]:
        return [
            self.binaries["kube-controller-manager"],
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self.folder / 'tokens.key'}",
            f"--root-ca-file={self.ca}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            "--node-monitor-period=2s",
            "--node-monitor-grace-period=16s",
        ]

    def _scheduler_command(self) -> list[str]:
        config = self.folder / "scheduler.json"
        config.write_text(
            '{"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",'
            f' "leaderElection": {{"leaderElect": false}}, "clientConnection": {{"kubeconfig": "{self.kubeconfig}"}}}}'
        )
        return [self.binaries["kube-scheduler"], f"--config={config}", "--secure-port=0"]

    def start(self) -> None:
        """All of it; returns when both nodes are Ready and DNS answers."""
        for node in self.nodes:
            kubelet = self.add_user(f"system:node:{node.name}", "system:nodes")
            proxy = self.add_user(f"system:kube-proxy:{node.name}", "system:node-proxier")
            node.configure(self.url, self.ca, {"kubelet": kubelet, "kube-proxy": proxy})
        super().start()
        self._grant_proxies()
        for helper in self._helpers:
            helper.start()
        for node in self.nodes:
            self.power_on(node)
        self.wires.route(self.network.services, self.nodes[0].address)
        self.import_image(kube_images.of_program(self.folder, PAUSE_IMAGE, self.binaries["pause"]))
        wait_for(self._nodes_ready, "both nodes Ready", READY_SECONDS_MAX)
        self._start_dns()

    def power_on(self, node: Node) -> None:
        """Starts a machine and plugs its card in."""
        node.start()
        self.wires.plug(f"kvc{self.network.number}n{node.index}", node.init_pid)
        self.wires.route(node.pods, node.address)

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()
        for helper in self._helpers:
            helper.stop()
        super().stop()
        self.wires.holder.stop()

    def _grant_proxies(self) -> None:
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"}
        group = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:node-proxier"}
        body = {"metadata": {"name": "test-proxies"}, "roleRef": role, "subjects": [group]}
        self.request("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", body)

    def _nodes_ready(self) -> bool:
        items = self.request("GET", "/api/v1/nodes")["items"]
        ready = [item for item in items if condition(item, "Ready") == "True"]
        return len(ready) == len(self.nodes)

    def import_image(self, archive: Path) -> None:
        """Into the image stores of all nodes."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.import_image(archive), self.nodes))

    def _start_dns(self) -> None:
        image = "kvcommons.test/coredns:1"
        self.import_image(kube_images.of_program(self.folder, image, self.binaries["coredns"]))
        self.apply(*kube_dns.manifests(image, self.network.service_dns))
        self.wait_rollout("kube-system", "deployment/coredns")

    def wait_rollout(self, namespace: str, workload: str, seconds_max: int = 180) -> None:
        self.kubectl(
            "rollout", "status", workload, "-n", namespace, f"--timeout={seconds_max}s", seconds_max=seconds_max + 30
        )

    def pods(self, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector.replace('=', '%3D').replace(',', '%2C')}"
        items: list[dict[str, Any]] = self.request("GET", path)["items"]
        return items

    def node_of(self, pod: dict[str, Any]) -> Node:
        return next(node for node in self.nodes if node.name == pod["spec"]["nodeName"])

    def container_pid(self, namespace: str, pod: str, container: str) -> int:
        """The id on this machine of a container's first process, to kill it as the kernel would."""
        found = next(item for item in self.pods(namespace) if item["metadata"]["name"] == pod)
        statuses = [*found["status"].get("containerStatuses", []), *found["status"].get("initContainerStatuses", [])]
        identity = next(item["containerID"] for item in statuses if item["name"] == container).rpartition("/")[2]
        for file in self._cgroup_files(self.node_of(found)):
            if identity in file.parent.name:
                first = [pid for pid in map(int, file.read_text().split()) if is_first(pid)]
                if first:
                    return first[0]
        raise ApiError(404, f"container {container} of {namespace}/{pod} has no process")

    def _cgroup_files(self, node: Node) -> Iterator[Path]:
        for place in cgroup_folders(node.cgroup):
            for folder, _, files in os.walk(place):  # rglob would end with an error where a pod goes meanwhile
                if "cgroup.procs" in files:
                    yield Path(folder, "cgroup.procs")

    def kill_container(self, namespace: str, pod: str, container: str) -> None:
        """SIGKILL of its first process."""
        os.kill(self.container_pid(namespace, pod, container), signal.SIGKILL)

    def service_address(self, namespace: str, service: str) -> str:
        return str(self.request("GET", f"/api/v1/namespaces/{namespace}/services/{service}")["spec"]["clusterIP"])

    def resolve(self, name: str) -> str:
        """The address that the cluster's DNS has for a name."""
        return kube_dns.ask(self.network.service_dns, name)


def is_first(pid: int) -> bool:
    """Whether a process is the first one of a container, by its number in there."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return re.search(r"^NSpid:.*\s1$", status, re.MULTILINE) is not None


def condition(item: dict[str, Any], kind: str) -> str:
    """Status of a condition: True, False, Unknown, or "" where there is none."""
    conditions = item.get("status", {}).get("conditions", [])
    return next((str(entry["status"]) for entry in conditions if entry["type"] == kind), "")
