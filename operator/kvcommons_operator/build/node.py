"""Cache nodes: a DaemonSet (perNode), or containers that ride in engine pods (sidecar). In both a holder keeps the arena while
the daemon's container restarts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.common import FailureMode, quantity_bytes
from kvcommons_operator.build import certificates, disks, pods, secrets, size, stores
from kvcommons_operator.build.merge import merged
from kvcommons_operator.build.pool import Pool, index_wiring
from kvcommons_operator.observed import Manifest

HOST_PATH: Final = "/run/kvcommons"
SOCKET_PATH: Final = "/run/kvcommons"
HOLDER_PATH: Final = "/run/kvcommons-holder"
STATE_PATH: Final = "/var/lib/kvcommons"
KEYS_PATH: Final = "/etc/kvcommons/keys"
SOCKET_VOLUME: Final = "kvcommons-socket"
HOLDER_VOLUME: Final = "kvcommons-holder"
STATE_VOLUME: Final = "kvcommons-state"
KEYS_VOLUME: Final = "kvcommons-keys"
NODE_CONTAINER: Final = names.CACHE_NODE_CONTAINER
HOLDER_CONTAINER: Final = "arena-holder"
PREPARE_CONTAINER: Final = "prepare"

MIB: Final = 1 << 20
CPU: Final = "250m"
OVERHEAD_BYTES_MIN: Final = 256 * MIB
"""What the node asks to be left beside its arena."""
OVERHEAD_BYTES: Final = 512 * MIB
OVERHEAD_ARENA_PART: Final = 32
"""And for what it writes down about the arena: a 32nd of it."""
HOLDER_IDLE_SECONDS: Final = 86_400
HOLDER_MEMORY: Final = "128Mi"
ROOT: Final = 0

# Directories that the daemon takes sockets in, and disks' folders: its own user's, and nobody else may put something there. Each comes
# with the field that asks for it, if one does: what can't be made is told by it, and from the log in a condition.
PREPARE: Final = (
    "import os, sys\n"
    "owner = [int(part) for part in sys.argv[1].split(':') if part]\n"
    "for argument in sys.argv[2:]:\n"
    "    path, _, field = argument.partition('=')\n"
    "    try:\n"
    "        os.makedirs(path, 0o750, exist_ok=True)\n"
    "        if owner: os.chmod(path, 0o750); os.chown(path, *owner)\n"
    "        elif not os.access(path, os.W_OK): raise PermissionError(13, 'not writable')\n"
    "    except OSError as error:\n"
    "        user = ':'.join(map(str, owner or (os.getuid(), os.getgid())))\n"
    "        sys.exit(f'{field or path}: no folder for user {user} there ({error.strerror}). Remedy: let it write to that volume, or take another')\n"
)


@dataclass(frozen=True, kw_only=True)
class NodeParts:
    """A cache node as parts of a pod."""

    prepare: dict[str, Any]
    """An init container that makes the directories."""
    containers: list[dict[str, Any]]
    """The holder and the daemon, in this order."""
    volumes: list[dict[str, Any]] = field(default_factory=list)
    socket: str = ""
    """Path of the socket, in the daemon's container and in the engine's."""


def host_directory(pool: Pool) -> str:
    """Where the pool's sockets are on every Kubernetes node. A namespace has no dot in it: no two pools meet."""
    return f"{HOST_PATH}/{pool.owner.namespace}.{pool.owner.name}"


def identity(pool: Pool) -> tuple[int, int]:
    """(user, group) of a DaemonSet's cache nodes. Engines need the group to reach the socket."""
    pod, container = pool.spec.pod_template.security_context, pool.spec.pod_template.container_security_context
    users = [part.run_as_user for part in (container, pod) if part is not None and part.run_as_user is not None]
    groups = [part.run_as_group for part in (container, pod) if part is not None and part.run_as_group is not None]
    return (users or [names.USER])[0], (groups or [names.USER])[0]


def memory_beside_bytes(pool: Pool) -> int:
    """What a cache node asks for beside its arena, where the pool does not say."""
    part = pool.arena_bytes // OVERHEAD_ARENA_PART + disks.memory_bytes(pool) + stores.memory_bytes(pool)
    return OVERHEAD_BYTES + -(-part // MIB) * MIB


def resources(pool: Pool) -> dict[str, Any]:
    """The container's resources: what the pool says and the arena on top, so that the pod's cgroup pays for it."""
    given = pool.spec.resources
    huge = pool.spec.tiers.memory.huge_pages
    arena = 0 if huge is not None else pool.arena_bytes
    requests, limits = dict(given.requests), dict(given.limits)
    if "cpu" not in given.requests and "cpu" not in given.limits:
        requests["cpu"] = CPU
    for told, first, second in ((requests, given.requests, given.limits), (limits, given.limits, given.requests)):
        beside = first.get("memory", second.get("memory"))
        beside_bytes = quantity_bytes(beside) if beside is not None else memory_beside_bytes(pool)
        told["memory"] = str(arena + max(beside_bytes, OVERHEAD_BYTES_MIN))
    requests["memory"] = min(requests["memory"], limits["memory"], key=int)
    if huge is not None:
        requests[f"hugepages-{huge.value}"] = limits[f"hugepages-{huge.value}"] = str(pool.arena_bytes)
    return {"requests": requests, "limits": limits}


def parts(pool: Pool, *, engine_users: Iterable[int] = ()) -> NodeParts:
    """The containers and volumes of one cache node, in either placement."""
    wiring = index_wiring(pool)
    private = f"{HOLDER_PATH}/private"
    directory = SOCKET_PATH if pool.per_node else f"{SOCKET_PATH}/node"
    socket, holder_socket = f"{directory}/node.sock", f"{private}/holder.sock"
    behind, shared = disks.parts(pool), stores.parts(pool)
    tls, certified = certificates.wiring(pool)
    tiers = [*behind.told, *shared.told]
    told_tiers = [pods.env("KVCOMMONS_NODE__TIERS", tiers)] if tiers else []
    holder_mount = pods.mount(HOLDER_VOLUME, HOLDER_PATH)
    socket_mount = pods.mount(SOCKET_VOLUME, SOCKET_PATH)
    daemon = {
        **_container(pool, NODE_CONTAINER, ["kvcommons", "node"]),
        "env": [*_env(pool, socket, holder_socket, engine_users, tls), *told_tiers, *wiring.env],
        "ports": [pods.port("control", names.CONTROL_PORT), pods.port("transport", pool.spec.transport.port)],
        "resources": resources(pool),
        "livenessProbe": {"initialDelaySeconds": 10, **pods.http_probe("/healthz", "control", failures=6, timeout=5)},
        "volumeMounts": [
            socket_mount,
            holder_mount,
            pods.mount(STATE_VOLUME, STATE_PATH),
            pods.mount(KEYS_VOLUME, KEYS_PATH, read_only=True),
            *behind.mounts,
            *shared.mounts,
            *certified.mounts,
            *wiring.mounts,
        ],
    }
    if pool.per_node or pool.spec.failure_mode == FailureMode.FAIL_CLOSED:
        daemon["readinessProbe"] = pods.http_probe("/readyz", "control", period=3, failures=2)
    socket_volume = (
        {"name": SOCKET_VOLUME, "hostPath": {"path": host_directory(pool), "type": "DirectoryOrCreate"}}
        if pool.per_node
        else pods.empty_dir(SOCKET_VOLUME)
    )
    return NodeParts(
        prepare=_prepare(pool, [directory, private, *behind.folders], [socket_mount, holder_mount, *behind.whole]),
        containers=[_holder(pool, holder_socket, holder_mount), _overridden(pool, daemon)],
        volumes=[
            socket_volume,
            pods.empty_dir(HOLDER_VOLUME),
            pods.empty_dir(STATE_VOLUME),
            pods.secret_volume(KEYS_VOLUME, pool.keys_name),
            *behind.volumes,
            *shared.volumes,
            *certified.volumes,
            *wiring.volumes,
        ],
        socket=socket,
    )


def sidecars(pool: Pool, *, engine_users: Iterable[int] = ()) -> NodeParts:
    """The same as native sidecars: they start before the engine, and end after it."""
    found = parts(pool, engine_users=engine_users)
    always = [{**container, "restartPolicy": "Always"} for container in found.containers]
    return NodeParts(prepare=found.prepare, containers=always, volumes=found.volumes, socket=found.socket)


def daemon_set(pool: Pool) -> Manifest:
    """One cache node on every Kubernetes node that is meant. OnDelete: the operator rolls it, one node at a time."""
    found = parts(pool)
    spec = pool.spec
    template_spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        "securityContext": dict(pods.POD_SECURITY),
        "initContainers": [found.prepare],
        "containers": found.containers,
        "volumes": found.volumes,
        "nodeSelector": {"kubernetes.io/os": "linux", **spec.node_selector},
    }
    if spec.tolerations:
        template_spec["tolerations"] = [toleration.to_dict() for toleration in spec.tolerations]
    if spec.affinity is not None:
        template_spec["affinity"] = spec.affinity.to_dict()
    own = spec.pod_template
    template_spec |= pods.pull_secrets(pool.install, [ref.name for ref in own.image_pull_secrets])
    template_spec |= pods.overrides(own)
    template_spec["securityContext"] = merged(template_spec["securityContext"], pods.said(own.security_context))
    template = {
        "metadata": {
            "labels": {**own.metadata.labels, **pool.owner.labels(names.CACHE_NODE)},
            "annotations": dict(own.metadata.annotations),
        },
        "spec": template_spec,
    }
    body = {
        "updateStrategy": {"type": "OnDelete"},
        "selector": {"matchLabels": pool.owner.selector(names.CACHE_NODE)},
        "template": pods.stamped(size.shaped(template)),
    }
    return pool.child(names.CACHE_NODE, "node").manifest("apps/v1", "DaemonSet", {"spec": body})


def _container(pool: Pool, name: str, command: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": pool.node_image,
        "imagePullPolicy": pool.install.image_pull_policy,
        "command": command,
        "securityContext": dict(pods.CONTAINER_SECURITY),
        **pods.TELLING,
    }


def _env(
    pool: Pool, socket: str, holder_socket: str, engine_users: Iterable[int], tls: Mapping[str, str]
) -> list[dict[str, Any]]:
    spec = pool.spec
    users = sorted({ROOT, names.USER, *engine_users})
    transport = spec.transport
    values: dict[str, object] = {
        "PEERS": {
            "listen": f"0.0.0.0:{transport.port}",
            "advertise": f"$(KVCOMMONS_POD_IP):{transport.port}",
            "sockets_per_peer": transport.sockets_per_peer,
            "replicas_max": transport.replicas_max,
            **tls,
        },
        "ADDRESS": f"$(KVCOMMONS_POD_IP):{names.CONTROL_PORT}",
        "SOCKET_PATH": socket,
        "HOLDER_SOCKET": holder_socket,
        "STATE_DIR": STATE_PATH,
        "NAMESPACE_SECRET_FILE": f"{KEYS_PATH}/{secrets.NAMESPACE_SECRET}",
        "ARENA_BYTES": pool.arena_bytes,
        "HUGE_PAGES": spec.tiers.memory.huge_pages is not None,
        "CONTROL_HOST": "0.0.0.0",
        "CONTROL_PORT": names.CONTROL_PORT,
        "CONTROL_TOKEN_FILE": f"{KEYS_PATH}/{secrets.CONTROL_TOKEN}",
        "MULTI_TENANT": spec.security.multi_tenant,
        "EVICTION": spec.eviction.policy.value,
        "TENANT_PERCENT_MAX": spec.tenancy.tenant_percent_max,
        "ALLOWED_UIDS": ",".join(str(user) for user in users),
        "ALLOWED_GIDS": identity(pool)[1],
        "LOG_LEVEL": spec.log_level.value,
        "LOG_JSON": True,
    }
    return [
        pods.env_field("KVCOMMONS_POD_IP", "status.podIP"),
        pods.env_field("KVCOMMONS_NODE__NODE_ID", "spec.nodeName" if pool.per_node else "metadata.name"),
        pods.env_field("KVCOMMONS_NODE__KUBERNETES_NODE", "spec.nodeName"),
        *(pods.env(f"KVCOMMONS_NODE__{name}", value) for name, value in values.items()),
    ]


def _holder(pool: Pool, socket: str, mount: dict[str, Any]) -> dict[str, Any]:
    command = ["python3", "-m", "kvcommons_node.holder", "--socket", socket]
    return {
        **_container(pool, HOLDER_CONTAINER, [*command, "--idle-seconds", str(HOLDER_IDLE_SECONDS)]),
        "resources": {"requests": {"cpu": "10m", "memory": HOLDER_MEMORY}, "limits": {"memory": HOLDER_MEMORY}},
        "volumeMounts": [mount],
    }


def _prepare(pool: Pool, folders: list[str], mounts: list[dict[str, Any]]) -> dict[str, Any]:
    """A host directory belongs to root at first: it is given to the node's user by the one container that may do so. In a sidecar it
    has no more rights than the node itself."""
    user, group = identity(pool)
    owner = f"{user}:{group}" if pool.per_node else ""
    container = _container(pool, PREPARE_CONTAINER, ["python3", "-c", PREPARE, owner, *folders])
    if disks.names_the_node(pool):
        container["env"] = [disks.NODE_NAME]
    if pool.per_node:
        container["securityContext"] = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "FOWNER", "DAC_OVERRIDE"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": False,
            "runAsUser": 0,
        }
    return {
        **container,
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}},
        "volumeMounts": mounts,
    }


def _overridden(pool: Pool, container: dict[str, Any]) -> dict[str, Any]:
    own = pool.spec.pod_template
    over = {
        "env": [variable.to_dict() for variable in own.env],
        "securityContext": pods.said(own.container_security_context),
    }
    return merged(container, over)
