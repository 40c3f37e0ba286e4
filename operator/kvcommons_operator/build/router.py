"""The router in front of a deployment's engines, with the account that lets it watch their pods."""

from __future__ import annotations

from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.common import quantity_bytes
from kvcommons_operator.build import pods, secrets
from kvcommons_operator.build.deployment import Deployment
from kvcommons_operator.build.merge import merged
from kvcommons_operator.build.pool import Wiring, index_wiring
from kvcommons_operator.observed import Manifest

SECRETS_PATH: Final = "/etc/kvcommons/router"
STATE_PATH: Final = "/var/lib/kvcommons"
DRAIN_DELAY_SECONDS: Final = 5
"""Until every client's proxy knows that the pod goes."""
GRACE_SECONDS: Final = 10
BODIES_BYTES_MAX: Final = 256 << 20
CPU_MILLIS: Final = 250
"""What a worker is given for certain; one takes up to a core."""
MEMORY_MIB: Final = 256
"""Of a worker, without bodies."""
MEMORY_MIB_MAX: Final = 1024


def build(deployment: Deployment) -> list[Manifest]:
    """Account, rights and the Deployment, in the order in which they need each other."""
    found = [role(deployment), role_binding(deployment)]
    if deployment.spec.routing.pod_template.service_account_name is None:
        found.insert(0, service_account(deployment))
    if deployment.pool is None:
        salt = secrets.salt(deployment.owner, deployment.install.root_secret)
        found.append(salt)
    return [*found, workload(deployment)]


def account(deployment: Deployment) -> str:
    """The name of the router's ServiceAccount: the user's, or ours."""
    return deployment.spec.routing.pod_template.service_account_name or deployment.router_child("router").name


def service_account(deployment: Deployment) -> Manifest:
    """Whom the router is to the API server."""
    child = deployment.router_child("router")
    return child.manifest("v1", "ServiceAccount", {"automountServiceAccountToken": False})


def role(deployment: Deployment) -> Manifest:
    """It may watch pods in the engines' namespace, and nothing else."""
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    child = deployment.engine_child("router")
    return child.manifest("rbac.authorization.k8s.io/v1", "Role", {"rules": rules})


def role_binding(deployment: Deployment) -> Manifest:
    """Gives the account that right, from whichever namespace it is."""
    child = deployment.engine_child("router")
    body = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": child.name},
        "subjects": [
            {"kind": "ServiceAccount", "name": account(deployment), "namespace": deployment.router_namespace},
        ],
    }
    return child.manifest("rbac.authorization.k8s.io/v1", "RoleBinding", body)


def workload(deployment: Deployment) -> Manifest:
    """The router's Deployment."""
    routing = deployment.spec.routing
    own = routing.pod_template
    selector = deployment.owner.selector(names.ROUTER)
    wiring = _wiring(deployment)
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector},
    }
    spec: dict[str, Any] = {
        "serviceAccountName": account(deployment),
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": DRAIN_DELAY_SECONDS + deployment.spec.drain_seconds + GRACE_SECONDS,
        "securityContext": merged(pods.POD_SECURITY, pods.said(own.security_context)),
        "topologySpreadConstraints": [spread],
        "containers": [_container(deployment, wiring)],
        "volumes": [pods.empty_dir("state", size="64Mi"), pods.empty_dir("tmp", size="64Mi"), *wiring.volumes],
        **pods.pull_secrets(deployment.install, [ref.name for ref in own.image_pull_secrets]),
        **pods.overrides(own),
    }
    labels = {**own.metadata.labels, **deployment.owner.labels(names.ROUTER, deployment.pool_labels())}
    metadata: dict[str, Any] = {"labels": labels}
    if own.metadata.annotations:
        metadata["annotations"] = dict(own.metadata.annotations)
    body = {
        "replicas": routing.replicas,
        "selector": {"matchLabels": selector},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "revisionHistoryLimit": 3,
        "template": {"metadata": metadata, "spec": spec},
    }
    return deployment.router_child("router").manifest("apps/v1", "Deployment", {"spec": body})


def _container(deployment: Deployment, wiring: Wiring) -> dict[str, Any]:
    routing = deployment.spec.routing
    workers = routing.workers
    resources = {
        "requests": {"cpu": f"{CPU_MILLIS * workers}m", "memory": f"{MEMORY_MIB * workers}Mi"},
        "limits": {"memory": f"{MEMORY_MIB_MAX * workers}Mi"},
    }
    given = routing.resources
    container = {
        "name": names.ROUTER,
        "image": routing.image or deployment.install.router_image,
        "imagePullPolicy": deployment.install.image_pull_policy,
        "command": ["kvcommons", "router"],
        "env": wiring.env,
        "ports": [pods.port("http", names.ROUTER_PORT)],
        "resources": given.to_dict() if given.requests or given.limits else resources,
        "securityContext": dict(pods.CONTAINER_SECURITY),
        **pods.TELLING,
        "readinessProbe": pods.http_probe("/health", "http", period=3, failures=2),
        # A router that drains answers 503 on purpose: whether it listens is all that a restart could mend.
        "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [pods.mount("state", STATE_PATH), pods.mount("tmp", "/tmp"), *wiring.mounts],
    }
    own = routing.pod_template
    over = {
        "env": [variable.to_dict() for variable in own.env],
        "securityContext": pods.said(own.container_security_context),
    }
    return merged(container, over)


def _wiring(deployment: Deployment) -> Wiring:
    routing = deployment.spec.routing
    index = index_wiring(deployment.pool) if deployment.pool is not None else Wiring()
    salt_name, salt_key = deployment.salt
    sources = [{"secret": {"name": salt_name, "items": [{"key": salt_key, "path": "salt"}]}}]
    values = settings(deployment)
    values["SALT_SECRET"] = f"{SECRETS_PATH}/salt"
    keys = routing.tenant_keys_secret_ref
    if keys is not None:
        sources.append({"secret": {"name": keys.name, "items": [{"key": keys.key, "path": "keys.json"}]}})
        values["API_KEYS"] = f"{SECRETS_PATH}/keys.json"
    volume = {"name": "secrets", "projected": {"defaultMode": pods.SECRET_MODE, "sources": sources}}
    return Wiring(
        env=[*(pods.env(f"KVCOMMONS_ROUTER__{name}", value) for name, value in values.items()), *index.env],
        mounts=[pods.mount("secrets", SECRETS_PATH, read_only=True), *index.mounts],
        volumes=[volume, *index.volumes],
    )


def settings(deployment: Deployment) -> dict[str, object]:
    """The router's settings, as its environment names them."""
    spec, routing = deployment.spec, deployment.spec.routing
    selector = {names.DEPLOYMENT_LABEL: names.label_value(deployment.owner.name), names.COMPONENT: names.ENGINE}
    by_pod = deployment.pool is not None and not deployment.pool.per_node
    values: dict[str, object] = {
        "LISTEN": f"0.0.0.0:{names.ROUTER_PORT}",
        "WORKERS": routing.workers,
        "POLICY": routing.policy.value,
        "STATE_DIRECTORY": STATE_PATH,
        "LOG_LEVEL": routing.log_level.value,
        "DRAIN_DELAY_SECONDS": DRAIN_DELAY_SECONDS,
        "DRAIN_SECONDS": spec.drain_seconds,
        "TRANSFER_PARAMS": deployment.pool is not None,
        "KUBERNETES__NAMESPACE": deployment.owner.namespace,
        "KUBERNETES__SELECTOR": ",".join(f"{key}={value}" for key, value in selector.items()),
        "KUBERNETES__PORT": names.ENGINE_PORT,
        "KUBERNETES__MODEL": spec.model.name,
        "KUBERNETES__NODE_BY": "podName" if by_pod else "nodeName",
        "LIMITS__BODIES_BYTES_MAX": BODIES_BYTES_MAX,
    }
    given = routing.limits
    limits = {
        "REQUESTS_MAX": given.requests_max,
        "TENANT_REQUESTS_MAX": given.tenant_requests_max,
        "CONNECTIONS_MAX": given.connections_max,
        "BODY_BYTES_MAX": quantity_bytes(given.body_bytes_max) if given.body_bytes_max is not None else None,
        "FIRST_BYTE_SECONDS": given.first_byte_seconds,
        "BETWEEN_BYTES_SECONDS": given.between_bytes_seconds,
        "ATTEMPTS_MAX": given.attempts_max,
    }
    values |= {f"LIMITS__{name}": value for name, value in limits.items() if value is not None}
    largest = limits["BODY_BYTES_MAX"]
    if largest is not None and largest > BODIES_BYTES_MAX:
        values["LIMITS__BODIES_BYTES_MAX"] = largest
    return values | _weights(deployment)


def _weights(deployment: Deployment) -> dict[str, object]:
    weights = deployment.spec.routing.weights
    credits = {
        "ENGINE_CREDIT": weights.engine_credit_percent,
        "MEMORY_CREDIT": weights.memory_credit_percent,
        "DISK_CREDIT": weights.disk_credit_percent,
        "PEER_CREDIT": weights.peer_credit_percent,
    }
    found: dict[str, object] = {f"COST__{name}": value / 100 for name, value in credits.items() if value is not None}
    if weights.decode_microseconds is not None:
        found["COST__DECODE_SECONDS"] = weights.decode_microseconds / 1_000_000
    return found
