"""A node of a test cluster: kubelet, containerd and kube-proxy in process, mount and network namespaces of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kube_reaper
from kube_binaries import Binaries
from kube_client import kubeconfig_text
from kube_process import Process, wait_for

CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")
SOCKET = "/run/containerd/containerd.sock"  # of the node's own /run; a path in the cluster's folder may be too long for a socket
PAUSE_IMAGE = "kvcommons.test/pause:1"
KUBELET_FOLDER = Path("/var/lib/kubelet")  # it keeps the sockets of device plugins there, wherever its own folder is
HARD_EVICTION = {
    "memory.available": "100Mi",
    "nodefs.available": "1%",
    "imagefs.available": "1%",
    "nodefs.inodesFree": "1%",
}


def cni_folder() -> Path | None:
    """Where the distribution has put the plugins."""
    return next((Path(place) for place in CNI_FOLDERS if Path(place, "bridge").exists()), None)


@dataclass(frozen=True)
class Network:
    """Addresses of a cluster: 10.N.0.0/24 for machines, 10.N.X.0/24 for the pods of machine X, and the Services'."""

    number: int

    @property
    def host(self) -> str:
        return f"10.{self.number}.0.1"

    @property
    def services(self) -> str:
        return f"10.{self.number}.128.0/20"

    @property
    def service_dns(self) -> str:
        return f"10.{self.number}.128.10"

    @property
    def pods(self) -> str:
        """Of all machines' pods; who connects to a Service from elsewhere (the tests) is masqueraded."""
        return f"10.{self.number}.8.0/21"

    def machine(self, index: int) -> str:
        return f"10.{self.number}.0.{10 + index}"

    def pods_of(self, index: int) -> str:
        return f"10.{self.number}.{10 + index}.0/24"


def kubelet_settings(network: Network, address: str, cgroup: str, folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(folder / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [network.service_dns],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folder / "resolv.conf"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "evictionHard": HARD_EVICTION,
        "imageGCHighThresholdPercent": 100,
        "healthzBindAddress": "127.0.0.1",
        "nodeStatusUpdateFrequency": "4s",
        "protectKernelDefaults": False,
        "makeIPTablesUtilChains": True,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "shutdownGracePeriod": "0s",
    }


def proxy_settings(network: Network, kubeconfig: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": network.pods,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "0.2s"},
    }


def cni_settings(network: Network, subnet: str, data: Path) -> dict[str, Any]:
    ranges = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipMasq": False}
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {**bridge, "ipam": {**ranges, "dataDir": str(data)}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def containerd_settings(folder: Path, cni: Path) -> str:
    """`restrict_oom_score_adj`: without CAP_SYS_RESOURCE no sandbox could lower its score."""
    return f"""version = 2
root = "{folder}/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


class Node:
    """One machine of the cluster. Ends, with all that runs on it, when `kill` is called or its first process ends."""

    def __init__(self, name: str, index: int, network: Network, folder: Path, binaries: Binaries) -> None:
        self.name = name
        self.index = index
        self.network = network
        self.folder = folder / name
        self.address = network.machine(index)
        self.pods = network.pods_of(index)
        self.cgroup = f"/kvcommons-{network.number}-{name}"  # as the network: of no other cluster on this machine
        self.machine: Process | None = None
        self._binaries = binaries
        for place in ("", "cni", "cni-data", "kubelet", "log"):
            (self.folder / place).mkdir(parents=True, exist_ok=True)

    def configure(self, url: str, ca: Path, tokens: Mapping[str, str]) -> None:
        """Writes all that its programs read. `tokens`: of `kubelet` and `kube-proxy`."""
        cni = cni_folder()
        assert cni is not None, "no CNI plugins"
        (self.folder / "ca.crt").write_bytes(ca.read_bytes())
        for user, token in tokens.items():
            path = self.folder / f"{user}.kubeconfig"
            path.touch(mode=0o600)
            path.write_text(kubeconfig_text(url, ca, token))
        # Of the cluster's DNS itself, and of pods that don't ask it.
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        settings = {
            "kubelet.json": kubelet_settings(self.network, self.address, self.cgroup, self.folder),
            "proxy.json": proxy_settings(self.network, self.folder / "kube-proxy.kubeconfig"),
            "cni/10-pods.conflist": cni_settings(self.network, self.pods, self.folder / "cni-data"),
            "node.json": self._init_settings(),
        }
        for name, value in settings.items():
            (self.folder / name).write_text(json.dumps(value, indent=1))
        (self.folder / "containerd.toml").write_text(containerd_settings(self.folder, cni))

    def _init_settings(self) -> dict[str, Any]:
        others = [index for index in (1, 2) if index != self.index]
        routes = {self.network.pods_of(index): self.network.machine(index) for index in others}
        return {
            "folder": str(self.folder),
            "hostname": self.name,
            "tmpfs": ["/run"],
            "binds": {
                str(self.folder / "kubelet"): str(KUBELET_FOLDER),
                str(self.folder / "log"): "/var/log",
            },
            "network": {
                "address": f"{self.address}/24",
                "routes": {**routes, "default": self.network.host},
                "settings": {
                    "net.ipv4.ip_forward": "1",
                    "net.ipv4.conf.all.route_localnet": "1",
                    "net.bridge.bridge-nf-call-iptables": "1",
                },
            },
            "daemons": self._daemons(),
        }

    def _daemons(self) -> dict[str, list[str]]:
        return {
            "containerd": ["containerd", "--config", str(self.folder / "containerd.toml")],
            "kubelet": [
                self._binaries["kubelet"],
                f"--config={self.folder / 'kubelet.json'}",
                f"--kubeconfig={self.folder / 'kubelet.kubeconfig'}",
                f"--container-runtime-endpoint=unix://{SOCKET}",
                f"--hostname-override={self.name}",
                f"--node-ip={self.address}",
                f"--root-dir={KUBELET_FOLDER}",
                "--v=1",
            ],
            "kube-proxy": [
                self._binaries["kube-proxy"],
                f"--config={self.folder / 'proxy.json'}",
                f"--hostname-override={self.name}",
            ],
        }

    def start(self) -> None:
        """Powers the machine on: namespaces, then its card, then (by its init) its programs."""
        for place in cgroup_folders(self.cgroup):
            place.mkdir(exist_ok=True)
            kube_reaper.record_cgroup(self.folder.parent, place)
        if not KUBELET_FOLDER.exists():
            KUBELET_FOLDER.mkdir(parents=True)
            kube_reaper.record_mount_point(self.folder.parent, KUBELET_FOLDER)
        namespaces = ["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child"]
        init = [sys.executable, str(Path(__file__).with_name("kube_init.py")), str(self.folder / "node.json")]
        self.machine = Process(f"machine-{self.name}", ["unshare", *namespaces, *init], self.folder.parent)
        self.machine.start()

    @property
    def init_pid(self) -> int:
        """Its first process, as seen from outside."""
        assert self.machine is not None, f"{self.name} was not started"
        pid = self.machine.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return int(wait_for(lambda: children.read_text().split(), f"first process of {self.name}", 10.0)[0])

    def kill(self) -> None:
        """The machine is lost: everything on it ends at once, and nobody is told."""
        if self.machine is not None:
            self.machine.kill()
            self.machine = None

    def inside(self, *command: str) -> list[str]:
        """A command line that runs in the node's namespaces."""
        return ["nsenter", "--target", str(self.init_pid), "--mount", "--net", "--pid", "--uts", "--", *command]

    def run(self, *command: str, seconds_max: float = 120.0) -> str:
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, check=False, timeout=seconds_max)
        assert done.returncode == 0, f"{self.name}: {' '.join(command)}: {done.stderr}"
        return done.stdout

    def import_image(self, archive: Path) -> None:
        """Images of an OCI or Docker archive, under the names that it gives them."""
        socket = Path(f"/proc/{self.init_pid}/root{SOCKET}")
        wait_for(socket.exists, f"containerd of {self.name}", 60.0)
        command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import", str(archive)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, f"{self.name}: import of {archive}: {done.stderr}"

    def log_tails(self) -> str:
        """The end of what its programs have said, for a failure's message."""
        names = ("containerd", "kubelet", "kube-proxy")
        logs = [self.folder / f"{name}.log" for name in names]
        return "\n".join(f"--- {log.name} of {self.name}\n{log.read_text()[-2_000:]}" for log in logs if log.exists())


def cgroup_folders(name: str) -> list[Path]:
    """Where a control group of this name lies: once with version 2, in each hierarchy with version 1."""
    root = Path("/sys/fs/cgroup")
    relative = name.lstrip("/")
    if (root / "cgroup.controllers").exists():
        return [root / relative]
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [
        Path(point) / relative
        for _, point, kind, *_ in mounts
        if kind in ("cgroup", "cgroup2") and os.path.isdir(point)
    ]
