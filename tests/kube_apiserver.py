"""A real etcd and kube-apiserver for tests, ready in a few seconds; many may run at once, each on an address of its own."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import secrets
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import kube_certs
from kube_binaries import Binaries
from kube_client import ApiError, Client, kubeconfig_text
from kube_process import NotReady, Process, wait_for

READY_SECONDS_MAX = 90.0
STOP_SECONDS_MAX = 5.0
SERVICE_RANGE = "10.111.0.0/16"
# What only controllers would make: the default ServiceAccount, the endpoints of its own Service.
ALONE = ("--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount")
ADMIN = "test-admin"
# Who asked for what: for tests of permissions and of load.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


def own_address() -> str:
    """A loopback address that only this process uses, so that the ports of two runs never meet."""
    pid = os.getpid()
    return f"127.{64 + (pid >> 14) % 128}.{(pid >> 7) & 127}.{1 + (pid & 127)}"


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def first_address(services: str) -> ipaddress.IPv4Address:
    """The Service `kubernetes` gets it."""
    return ipaddress.IPv4Network(services)[1]


class ApiServer(Client):
    """etcd and an API server, and their administrator's client. The tier without kubelets and without controllers."""

    def __init__(
        self,
        folder: Path,
        binaries: Binaries,
        address: str = "",
        services: str = SERVICE_RANGE,
        flags: tuple[str, ...] = ALONE,
    ) -> None:
        self.folder = folder
        self.binaries = binaries
        self.address = address or own_address()
        self.port = free_port(self.address)
        self._loopback = own_address()
        self._etcd_ports = free_port(self._loopback), free_port(self._loopback)
        self.audit_log = folder / "audit.log"
        self._users = {secrets.token_hex(16): (ADMIN, "system:masters")}
        kube_certs.write_server(folder, [self.address, str(first_address(services))])
        kube_certs.write_signing_key(folder / "tokens.key")
        (folder / "audit-policy.yaml").write_text(json.dumps(AUDIT_POLICY))
        kubeconfig = folder / "kubeconfig"
        token = next(iter(self._users))
        super().__init__(
            f"https://{self.address}:{self.port}", folder / "ca.crt", token, kubeconfig, binaries["kubectl"]
        )
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(kubeconfig_text(self.url, self.ca, token))
        self.etcd = Process("etcd", self._etcd_command(), folder)
        self.apiserver = Process(
            "kube-apiserver", [*self._apiserver_command(), f"--service-cluster-ip-range={services}", *flags], folder
        )

    @property
    def etcd_url(self) -> str:
        return f"http://{self._loopback}:{self._etcd_ports[0]}"

    def _etcd_command(self) -> list[str]:
        peer = f"http://{self._loopback}:{self._etcd_ports[1]}"
        return [
            self.binaries["etcd"],
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        ]

    def _apiserver_command(self) -> list[str]:
        return [
            self.binaries["kube-apiserver"],
            f"--etcd-servers={self.etcd_url}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self.folder / 'server.crt'}",
            f"--tls-private-key-file={self.folder / 'server.key'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-signing-key-file={self.folder / 'tokens.key'}",
            f"--service-account-key-file={self.folder / 'tokens.key'}",
            "--allow-privileged",
            f"--audit-policy-file={self.folder / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log}",
            "--v=0",
        ]

    def add_user(self, name: str, *groups: str) -> str:
        """Token of a user that the API server will know from its next start."""
        token = secrets.token_hex(16)
        self._users[token] = (name, ",".join(groups))
        return token

    def start(self) -> None:
        self.etcd.start()
        self.start_apiserver()

    def start_apiserver(self) -> None:
        """On the same port as before. Returns when it is ready."""
        lines = [f'{token},{name},{name},"{groups}"\n' for token, (name, groups) in self._users.items()]
        (self.folder / "tokens.csv").touch(mode=0o600)
        (self.folder / "tokens.csv").write_text("".join(lines))
        self.apiserver.start()
        try:
            self.apiserver.wait_until(self._is_ready, "ready", READY_SECONDS_MAX)
        except NotReady as error:
            raise NotReady(f"{error}\netcd's log ends:\n{self.etcd.tail()}") from None

    def stop_apiserver(self) -> None:
        """Clients find nobody there; etcd keeps what is stored."""
        self.apiserver.stop(STOP_SECONDS_MAX)

    def stop(self) -> None:
        self.apiserver.stop(STOP_SECONDS_MAX)
        self.etcd.stop(STOP_SECONDS_MAX)

    def _is_ready(self) -> bool:
        try:
            # The default namespace comes a moment after readiness.
            return self.request("GET", "/readyz") == "ok" and bool(self.request("GET", "/api/v1/namespaces/default"))
        except (OSError, ApiError):
            return False

    def expire(self) -> None:
        """Forgets its history, by a compaction and a restart: watches and pages from before are answered 410."""
        self.stop_apiserver()
        revision = self._etcd("/v3/kv/range", {"key": "AA=="})["header"]["revision"]
        self._etcd("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        self.start_apiserver()

    def wipe(self, *prefixes: str) -> None:
        """What is stored under these keys, which end with a slash, is gone at once, without a word to anybody but watchers. (To delete a
        CRD in order takes the API server many seconds.)"""
        for prefix in prefixes:
            assert prefix.endswith("/")
            first, end = (base64.b64encode(key.encode()).decode() for key in (prefix, prefix[:-1] + "0"))
            self._etcd("/v3/kv/deleterange", {"key": first, "range_end": end})

    def _etcd(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(self.etcd_url + path, data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def account_token(self, namespace: str, account: str, seconds: int = 7_200) -> str:
        """A token of a ServiceAccount, as its pods have."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.request("POST", path, {"spec": {"expirationSeconds": seconds}})
        return str(answer["status"]["token"])

    def as_account(self, namespace: str, account: str) -> Client:
        """A client with a ServiceAccount's rights, and its kubeconfig."""
        token = self.account_token(namespace, account)
        kubeconfig = self.folder / f"kubeconfig-{namespace}-{account}"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(kubeconfig_text(self.url, self.ca, token, namespace))
        return Client(self.url, self.ca, token, kubeconfig, self._kubectl)

    def audit(self) -> list[dict[str, Any]]:
        """All requests so far: `verb`, `requestURI`, `user`, `objectRef`, `responseStatus`."""
        if not self.audit_log.exists():
            return []
        return [json.loads(line) for line in self.audit_log.read_text().splitlines()]

    def wait_gone(self, path: str, seconds_max: float = 30.0) -> None:
        """Until an object is no longer there."""

        def gone() -> bool:
            try:
                self.request("GET", path)
            except ApiError as error:
                return error.status == 404
            return False

        wait_for(gone, f"{path} gone", seconds_max)
