"""Speaks to a test cluster's API server as its administrator: plain HTTPS, and kubectl."""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

REQUEST_SECONDS_MAX = 60
KUBECTL_SECONDS_MAX = 180
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server said no: its status and its message."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class KubectlError(Exception):
    """kubectl failed; the message is what it said."""


def kubeconfig_text(url: str, ca: Path, token: str, namespace: str = "default") -> str:
    """A kubeconfig with one cluster, one user and one context."""
    context = {"cluster": "test", "user": "test", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": context}],
    }
    return str(yaml.safe_dump(config))


class Client:
    """One user of one API server."""

    def __init__(self, url: str, ca: Path | None, token: str, kubeconfig: Path, kubectl: str) -> None:
        self.url = url
        self.token = token
        self.kubeconfig = kubeconfig
        self._ca = ca
        self._kubectl = kubectl
        self._tls = ssl.create_default_context(cafile=str(ca)) if ca else None

    @property
    def ca(self) -> Path:
        """The authority that signed the server's certificate."""
        assert self._ca is not None, "this server is reached without TLS"
        return self._ca

    def request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        """The parsed answer to one request (text where it is not JSON); ApiError on 4xx and 5xx."""
        request = urllib.request.Request(self.url + path, method=method)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Accept", "application/json")
        if body is not None:
            request.add_header("Content-Type", content)
            request.data = json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS_MAX, context=self._tls) as answer:
                text = answer.read().decode()
                is_json = answer.headers.get_content_type() == "application/json"
        except urllib.error.HTTPError as error:
            with error:
                raise ApiError(error.code, error.read().decode(errors="replace")) from error
        return json.loads(text) if is_json else text

    def exists(self, path: str) -> bool:
        """Whether an object is there."""
        try:
            self.request("GET", path)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds_max: float = KUBECTL_SECONDS_MAX) -> str:
        """What kubectl prints; KubectlError with what it complains of."""
        command = [self._kubectl, "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=seconds_max)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *manifests: dict[str, Any], namespace: str | None = None) -> None:
        """`kubectl apply` of manifests."""
        scope = ("--namespace", namespace) if namespace else ()
        self.kubectl("apply", *scope, "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def create_namespace(self, name: str, labels: dict[str, str] | None = None) -> None:
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels or {}}})
