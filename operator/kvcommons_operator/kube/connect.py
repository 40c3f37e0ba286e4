"""Where the API server is and who we are there: a kubeconfig if one is given, else the pod's ServiceAccount."""

from __future__ import annotations

import os
from pathlib import Path

from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from kvcommons_core.errors import ConfigurationError

CONNECTIONS_MAX = 256
"""Every watch holds one."""
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


async def load(kubeconfig: str = "", context: str = "") -> Configuration:
    """In a pod, the ServiceAccount's; else the given kubeconfig, else $KUBECONFIG, else ~/.kube/config.

    :raises ConfigurationError: if none of them can be used.
    """
    configuration = Configuration()
    in_cluster = not kubeconfig and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    file = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    try:
        if in_cluster:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(file, context or None, configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError) as error:
        shown = "the pod's ServiceAccount" if in_cluster else file
        raise ConfigurationError("kubeconfig", shown, f"give a kubeconfig that can be used: {error}") from error
    configuration.connection_pool_maxsize = CONNECTIONS_MAX
    # What may be tried again, and how long, is the client's own affair.
    configuration.retries = None
    return configuration


def client_of(configuration: Configuration) -> ApiClient:
    """A client of that configuration, with its own pool of connections."""
    return ApiClient(configuration)


def own_namespace(default: str) -> str:
    """The namespace of the pod that this runs in."""
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or default
    except OSError:
        return default
