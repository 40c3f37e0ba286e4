"""The managed index: one Redis (or Valkey), or three with Sentinel. Nothing is persistent: losing it costs recomputation.

The image needs `redis-server`, `redis-cli` and `sh`, as those of Redis >= 6.2 and Valkey have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.build import pods, secrets
from kvcommons_operator.build.meta import Child, Owner
from kvcommons_operator.build.redis_start import START
from kvcommons_operator.observed import Install, Manifest

USER: Final = "kvcommons"
REPLICA_USER: Final = "replica"
SENTINEL_USER: Final = "sentinel"
SENTINEL_REPLICAS: Final = 3
SENTINEL_QUORUM: Final = 2
SENTINEL_MEMORY: Final = "64Mi"
OVERHEAD_BYTES: Final = 64 << 20
CONFIG_PATH: Final = "/etc/kvcommons-index"
DATA_PATH: Final = "/data"
COMMANDS: Final = (
    "+get +set +mget +del +pexpire +hget +hset +hsetnx +hdel +hincrby +hmget +hgetall +hrandfield +eval +evalsha "
    "+script|load +info +ping +publish +subscribe +unsubscribe +select"
)
SENTINEL_COMMANDS: Final = (
    "+multi +exec +slaveof +replicaof +failover +ping +subscribe +publish +info +role +config|rewrite +client|setname "
    "+client|kill +script|kill"
)
SENTINEL_PEER_COMMANDS: Final = "+ping +publish +client|setname +sentinel|is-master-down-by-addr"
SENTINEL_ASKING: Final = (
    "+ping +sentinel|get-master-addr-by-name +sentinel|master +sentinel|masters +sentinel|replicas +sentinel|slaves "
    "+sentinel|sentinels"
)
"""What who does not log in may do: ask who leads, and change nothing."""


@dataclass(frozen=True, kw_only=True)
class ManagedIndex:
    """What a pool wants of its own Redis."""

    owner: Owner
    install: Install
    prefix: str
    memory_bytes: int
    """Redis' maxmemory."""
    sentinel: bool = False
    image: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)
    scheduling: Mapping[str, Any] = field(default_factory=dict)
    """nodeSelector, tolerations, affinity of the pods."""

    @property
    def name(self) -> str:
        """Of the StatefulSet and its Service: what differs between one and three can't be changed in either."""
        return names.child(self.owner.name, "index-ha" if self.sentinel else "index")

    @property
    def config_name(self) -> str:
        """Of the Secret that only Redis mounts."""
        return names.child(self.owner.name, "index-config")

    @property
    def auth_name(self) -> str:
        """Of the Secret that nodes and routers mount."""
        return names.child(self.owner.name, "index-auth")

    @property
    def domain(self) -> str:
        """What the pods' host names end with."""
        return f"{self.name}.{self.owner.namespace}.svc.{self.install.cluster_domain}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """One host name a pod, the first primary first."""
        return tuple(f"{self.name}-{number}.{self.domain}" for number in range(self.replicas))

    @property
    def sentinel_ids(self) -> tuple[str, ...]:
        """One a pod, the same for ever."""
        marks = (f"{self.owner.uid}/{host}".encode() for host in self.hosts)
        return tuple(hashlib.sha256(mark).hexdigest()[:40] for mark in marks)

    @property
    def replicas(self) -> int:
        """How many pods."""
        return SENTINEL_REPLICAS if self.sentinel else 1

    @property
    def url(self) -> str:
        """What nodes and routers connect to."""
        if not self.sentinel:
            return f"redis://{self.domain}:{names.REDIS_PORT}/0"
        hosts = ",".join(f"{host}:{names.SENTINEL_PORT}" for host in self.hosts)
        return f"redis+sentinel://{hosts}/{names.SENTINEL_MASTER}/0"

    def child(self, name: str) -> Child:
        """A child of this component."""
        return Child(owner=self.owner, component=names.INDEX, name=name)

    def password(self, user: str) -> str:
        """Of one of its users."""
        return secrets.password(self.install.root_secret, user, self.owner.uid)


def build(index: ManagedIndex) -> list[Manifest]:
    """Secrets, Service and StatefulSet of the index."""
    config = {"users.acl": acl(index), "redis.conf": redis_conf(index)}
    if index.sentinel:
        config |= {"sentinel.conf": sentinel_conf(index), "start.sh": START}
    return [
        secrets.secret(index.child(index.config_name), config),
        secrets.secret(index.child(index.auth_name), {secrets.PASSWORD: index.password(USER)}),
        service(index),
        stateful_set(index, pods.digest(config)),
    ]


def acl(index: ManagedIndex) -> str:
    """The ACL file: passwords as hashes. Who does not log in may ask whether the server is there, and nothing else."""
    lines = [
        "user default on nopass resetkeys resetchannels -@all +ping",
        f"user {USER} on {_hashed(index, USER)} ~{index.prefix}* resetchannels &{index.prefix}* -@all {COMMANDS}",
    ]
    if index.sentinel:
        lines += [
            f"user {REPLICA_USER} on {_hashed(index, REPLICA_USER)} resetkeys resetchannels -@all +psync +replconf +ping",
            f"user {SENTINEL_USER} on {_hashed(index, SENTINEL_USER)} resetkeys resetchannels &__sentinel__:hello -@all "
            + SENTINEL_COMMANDS,
        ]
    return "\n".join(lines) + "\n"


def _hashed(index: ManagedIndex, user: str) -> str:
    return "#" + hashlib.sha256(index.password(user).encode()).hexdigest()


def redis_conf(index: ManagedIndex) -> str:
    """The server's configuration."""
    lines = [
        f"port {names.REDIS_PORT}",
        "bind * -::*",
        "protected-mode no",
        f"dir {DATA_PATH}",
        'save ""',
        "appendonly no",
        f"maxmemory {index.memory_bytes}",
        "maxmemory-policy allkeys-lru",
        f"aclfile {CONFIG_PATH}/users.acl",
        "repl-diskless-sync yes",
        "repl-diskless-sync-delay 0",
    ]
    if index.sentinel:
        lines += [
            "replica-announce-ip @SELF@",
            f"masteruser {REPLICA_USER}",
            f"masterauth {index.password(REPLICA_USER)}",
        ]
    return "\n".join(lines) + "\n"


def sentinel_conf(index: ManagedIndex) -> str:
    """The sentinels' configuration, completed by START. A take-over that failed is tried again after twice failover-timeout.

    Sentinels log in to each other; anybody else may ask them who leads, but have nothing changed."""
    master = names.SENTINEL_MASTER
    lines = [
        f"port {names.SENTINEL_PORT}",
        f"dir {DATA_PATH}",
        "protected-mode no",
        "sentinel resolve-hostnames yes",
        "sentinel announce-hostnames yes",
        "sentinel myid @ID@",
        "sentinel announce-ip @SELF@",
        f"sentinel monitor {master} @MASTER@ {names.REDIS_PORT} {SENTINEL_QUORUM}",
        f"sentinel auth-user {master} {SENTINEL_USER}",
        f"sentinel auth-pass {master} {index.password(SENTINEL_USER)}",
        f"sentinel down-after-milliseconds {master} 3000",
        f"sentinel failover-timeout {master} 5000",
        f"sentinel parallel-syncs {master} 2",
        f"user default on nopass resetkeys resetchannels -@all {SENTINEL_ASKING}",
        f"user {SENTINEL_USER} on {_hashed(index, SENTINEL_USER)} resetkeys allchannels -@all {SENTINEL_PEER_COMMANDS}",
        f"sentinel sentinel-user {SENTINEL_USER}",
        f"sentinel sentinel-pass {index.password(SENTINEL_USER)}",
    ]
    return "\n".join(lines) + "\n"


def service(index: ManagedIndex) -> Manifest:
    """With Sentinel headless, and naming pods before they are ready: that is how they find each other."""
    ports = [{"name": "redis", "port": names.REDIS_PORT, "targetPort": "redis", "protocol": "TCP"}]
    spec: dict[str, Any] = {"selector": index.owner.selector(names.INDEX), "ports": ports}
    if index.sentinel:
        ports.append({"name": "sentinel", "port": names.SENTINEL_PORT, "targetPort": "sentinel", "protocol": "TCP"})
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    return index.child(index.name).manifest("v1", "Service", {"spec": spec})


def stateful_set(index: ManagedIndex, config_digest: str) -> Manifest:
    """One pod or three; a changed configuration rolls them."""
    selector = index.owner.selector(names.INDEX)
    containers = [_redis(index), *([_sentinel(index)] if index.sentinel else [])]
    volumes = [pods.secret_volume("config", index.config_name), pods.empty_dir("data", size="4Gi")]
    if index.sentinel:
        volumes.append(pods.empty_dir("sentinel", size="64Mi"))
    spread: dict[str, Any] = {}
    if index.sentinel:
        term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": selector}}
        preferred = [{"weight": 100, "podAffinityTerm": term}]
        spread = {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}
    template = {
        "metadata": {
            "labels": index.owner.labels(names.INDEX),
            "annotations": {f"{names.GROUP}/config-hash": config_digest},
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 10,
            "securityContext": dict(pods.POD_SECURITY),
            "containers": containers,
            "volumes": volumes,
            **pods.pull_secrets(index.install),
            **spread,
            **index.scheduling,
        },
    }
    spec = {
        "replicas": index.replicas,
        "serviceName": index.name,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": selector},
        "template": template,
    }
    return index.child(index.name).manifest("apps/v1", "StatefulSet", {"spec": spec})


def _redis(index: ManagedIndex) -> dict[str, Any]:
    memory = index.memory_bytes + OVERHEAD_BYTES
    resources = {
        "requests": {"cpu": "100m", "memory": str(memory)},
        # Fragmentation, clients' buffers, a replica's copy.
        "limits": {"memory": str(memory + index.memory_bytes // 2)},
    }
    command = (
        ["sh", f"{CONFIG_PATH}/start.sh", "redis"] if index.sentinel else ["redis-server", f"{CONFIG_PATH}/redis.conf"]
    )
    return {
        "name": "redis",
        "image": index.image or index.install.redis_image,
        "imagePullPolicy": index.install.image_pull_policy,
        "command": command,
        "env": _env(index),
        "ports": [pods.port("redis", names.REDIS_PORT)],
        "resources": dict(index.resources) or resources,
        "securityContext": dict(pods.CONTAINER_SECURITY),
        **pods.TELLING,
        "readinessProbe": {
            "exec": {"command": ["redis-cli", "-p", str(names.REDIS_PORT), "ping"]},
            "periodSeconds": 5,
            "timeoutSeconds": 3,
        },
        "livenessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [pods.mount("config", CONFIG_PATH, read_only=True), pods.mount("data", DATA_PATH)],
    }


def _sentinel(index: ManagedIndex) -> dict[str, Any]:
    return {
        "name": "sentinel",
        "image": index.image or index.install.redis_image,
        "imagePullPolicy": index.install.image_pull_policy,
        "command": ["sh", f"{CONFIG_PATH}/start.sh", "sentinel"],
        "env": _env(index),
        "ports": [pods.port("sentinel", names.SENTINEL_PORT)],
        "resources": {"requests": {"cpu": "20m", "memory": SENTINEL_MEMORY}, "limits": {"memory": SENTINEL_MEMORY}},
        "securityContext": dict(pods.CONTAINER_SECURITY),
        **pods.TELLING,
        "livenessProbe": {"tcpSocket": {"port": "sentinel"}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [pods.mount("config", CONFIG_PATH, read_only=True), pods.mount("sentinel", DATA_PATH)],
    }


def _env(index: ManagedIndex) -> list[dict[str, Any]]:
    return [
        pods.env_field("POD_NAME", "metadata.name"),
        pods.env("INDEX_SERVICE", index.domain),
        pods.env("INDEX_HOSTS", " ".join(index.hosts)),
        pods.env("INDEX_IDS", " ".join("=".join(pair) for pair in zip(index.hosts, index.sentinel_ids, strict=True))),
    ]
