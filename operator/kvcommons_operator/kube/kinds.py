"""The kinds that the operator reads or writes: their paths, and whether a cluster may lack them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of one API version."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True
    optional: bool = False
    """Belongs to another project, whose API need not be installed."""

    @property
    def group(self) -> str:
        """The API group; empty for the core."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The version within its group."""
        return self.api_version.rpartition("/")[2]

    @property
    def key(self) -> tuple[str, str]:
        """(apiVersion, kind), as manifests say it."""
        return self.api_version, self.name

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """The path of the collection or of one object. Without a namespace: all namespaces."""
        parts = ["api" if not self.group else "apis", *self.api_version.split("/")]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(parts)


OWN_API: Final = "kvcommons.io/v1alpha1"

POOL: Final = Kind(OWN_API, "KVCachePool", "kvcachepools")
DEPLOYMENT_OWN: Final = Kind(OWN_API, "InferenceDeployment", "inferencedeployments")
ROLE_OWN: Final = Kind(OWN_API, "InferenceRole", "inferenceroles")
OWN_KINDS: Final = (POOL, DEPLOYMENT_OWN, ROLE_OWN)

POD: Final = Kind("v1", "Pod", "pods")
NODE: Final = Kind("v1", "Node", "nodes", namespaced=False)
NAMESPACE: Final = Kind("v1", "Namespace", "namespaces", namespaced=False)
SECRET: Final = Kind("v1", "Secret", "secrets")
SERVICE: Final = Kind("v1", "Service", "services")
CONFIG_MAP: Final = Kind("v1", "ConfigMap", "configmaps")
SERVICE_ACCOUNT: Final = Kind("v1", "ServiceAccount", "serviceaccounts")
CLAIM: Final = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
EVENT: Final = Kind("events.k8s.io/v1", "Event", "events")
DAEMON_SET: Final = Kind("apps/v1", "DaemonSet", "daemonsets")
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
STATEFUL_SET: Final = Kind("apps/v1", "StatefulSet", "statefulsets")
ROLE: Final = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDING: Final = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
NETWORK_POLICY: Final = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
DISRUPTION_BUDGET: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
AUTOSCALER: Final = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")

LEADER_WORKER_SET: Final = Kind("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets", optional=True)
SERVICE_MONITOR: Final = Kind("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors", optional=True)
POD_MONITOR: Final = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors", optional=True)
PROMETHEUS_RULE: Final = Kind("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules", optional=True)
SCALED_OBJECT: Final = Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects", optional=True)
HTTP_ROUTE: Final = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes", optional=True)
INFERENCE_POOL: Final = Kind("inference.networking.k8s.io/v1", "InferencePool", "inferencepools", optional=True)
CERTIFICATE: Final = Kind("cert-manager.io/v1", "Certificate", "certificates", optional=True)

ALL: Final = tuple(value for value in list(globals().values()) if isinstance(value, Kind))
BY_KEY: Final[Mapping[tuple[str, str], Kind]] = {kind.key: kind for kind in ALL}
OPTIONAL: Final = tuple(kind for kind in ALL if kind.optional)


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """:raises KeyError: for a kind that the operator has no business with."""
    return BY_KEY[(str(manifest["apiVersion"]), str(manifest["kind"]))]
