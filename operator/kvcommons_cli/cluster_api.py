"""Reads a cluster through its API server, as whoever the kubeconfig (or the pod's ServiceAccount) says we are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

Manifest = dict[str, Any]

CONNECT_SECONDS_MAX: Final = 5.0
READ_SECONDS_MAX: Final = 20.0
PROXY_SECONDS_MAX: Final = 4.0
PAGE_ITEMS: Final = 500
LIST_ITEMS_MAX: Final = 20_000
ANSWER_BYTES_MAX: Final = 64 << 20
EXTRA: Final = "pip install 'kvcommons[operator]'"


class ClusterError(Exception):
    """The cluster can't be asked, or said no. ``status`` is the HTTP status, 0 where there was no answer."""

    def __init__(self, what: str, remedy: str, status: int = 0) -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy
        self.status = status


def configured(kubeconfig: str, context: str, environ: Mapping[str, str] | None = None) -> bool:
    """Whether anything here says where a cluster is."""
    variables = os.environ if environ is None else environ
    if kubeconfig or context or variables.get("KUBECONFIG") or variables.get("KUBERNETES_SERVICE_HOST"):
        return True
    return (Path(variables.get("HOME", "/")) / ".kube" / "config").exists()


class ClusterApi:
    """One user of one API server. Only reads, and asks what this user may do."""

    def __init__(self, configuration: Any, pool: Any, described: str) -> None:
        self._configuration = configuration
        self._pool = pool
        self.described = described
        """Who asks whom, for a person."""

    def get(self, path: str, seconds_max: float = READ_SECONDS_MAX, query: Mapping[str, str] | None = None) -> Manifest:
        """:raises ClusterError: without an answer, or for one that is not 2xx."""
        return _parsed(path, self._request("GET", path, None, seconds_max, query or {}))

    def text(self, path: str, seconds_max: float = READ_SECONDS_MAX) -> str:
        """The same for what is no JSON."""
        return self._request("GET", path, None, seconds_max, {}).decode(errors="replace")

    def items(self, path: str, **query: str) -> list[Manifest]:
        """All of a list, page by page; LIST_ITEMS_MAX at most."""
        found: list[Manifest] = []
        asked = {"limit": str(PAGE_ITEMS), **query}
        while len(found) < LIST_ITEMS_MAX:
            page = self.get(path, query=asked)
            found += page.get("items") or []
            following = (page.get("metadata") or {}).get("continue")
            if not following:
                break
            asked["continue"] = following
        return found[:LIST_ITEMS_MAX]

    def allowed(self, review: Manifest, kind: str = "SelfSubjectAccessReview") -> bool:
        """Whether the API server would let it be done. :param review: the review's spec."""
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": review}
        path = f"/apis/authorization.k8s.io/v1/{kind.lower()}s"
        answer = _parsed(path, self._request("POST", path, body, READ_SECONDS_MAX, {}))
        return (answer.get("status") or {}).get("allowed") is True

    def pod_path(self, namespace: str, pod: str, port: int, path: str) -> str:
        """Path of a pod's own HTTP server, through the API server."""
        return f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}:{port}/proxy{path}"

    def _request(self, method: str, path: str, body: object, seconds_max: float, query: Mapping[str, str]) -> bytes:
        import urllib3

        address = self._configuration.host.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json, */*", "User-Agent": "kvcommons-cli"}
        for setting in self._configuration.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        if body is not None:
            headers["Content-Type"] = "application/json"
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS_MAX, read=seconds_max)
        try:
            response = self._pool.request(
                method,
                address,
                headers=headers,
                body=None if body is None else json.dumps(body),
                timeout=timeout,
                retries=False,
                preload_content=False,
            )
            content: bytes = response.read(ANSWER_BYTES_MAX)
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(
                f"{self._configuration.host} does not answer: {_short(error)}",
                "is the cluster up, and is this the right context? `kubectl config current-context` says which it is",
            ) from error
        if not 200 <= response.status < 300:
            raise _refused(path, response.status, content)
        return content


def connect(kubeconfig: str = "", context: str = "") -> ClusterApi:
    """:raises ClusterError: where no kubeconfig can be used, or the client library is not installed."""
    try:
        import yaml
        from kubernetes import client, config
    except ImportError as error:
        raise ClusterError("the client for Kubernetes is not installed", EXTRA) from error
    configuration = client.Configuration()
    in_pod = not kubeconfig and not context and "KUBERNETES_SERVICE_HOST" in os.environ
    try:
        if in_pod and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            described = "the pod's ServiceAccount"
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig or None, context=context or None, client_configuration=configuration
            )
            described = f"context {context or _current_context(kubeconfig)}"
    except (config.ConfigException, yaml.YAMLError, OSError, TypeError, ValueError, AttributeError) as error:
        raise ClusterError(
            f"no kubeconfig can be used{f' ({kubeconfig})' if kubeconfig else ''}: {_short(error).rstrip('.')}",
            "give one by --kubeconfig or $KUBECONFIG, and a context that it has by --context",
        ) from error
    pool = client.ApiClient(configuration).rest_client.pool_manager
    return ClusterApi(configuration, pool, f"{described}, {configuration.host}")


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Nothing of the client library's is shown as a traceback."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ClusterError(f"the API server's answer can't be read: {_short(error)}", "is it a Kubernetes?") from error


def _current_context(kubeconfig: str) -> str:
    from kubernetes import config

    listed = config.list_kube_config_contexts(config_file=kubeconfig or None)  # type: ignore[no-untyped-call]
    active = listed[1]
    return str(active["name"])


def _parsed(path: str, content: bytes) -> Manifest:
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise ClusterError(f"{path}: the answer is no JSON: {content[:80]!r}", "") from error
    if not isinstance(parsed, dict):
        raise ClusterError(f"{path}: the answer is no JSON object: {content[:80]!r}", "")
    return parsed


def _refused(path: str, status: int, content: bytes) -> ClusterError:
    try:
        message = str(json.loads(content).get("message", ""))
    except (ValueError, AttributeError):
        message = content[:200].decode(errors="replace").strip()
    remedy = {
        401: "log in to the cluster again: its credentials are not accepted",
        403: "ask for the right to do that, or use another context",
    }.get(status, "")
    return ClusterError(f"{path.partition('?')[0]}: status {status}: {message}", remedy, status)


def _short(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
