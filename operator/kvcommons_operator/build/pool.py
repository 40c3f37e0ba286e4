"""A pool as builders see it: its specification, who it is, and how the operator was installed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvcommons_operator import names
from kvcommons_operator.api.common import quantity_bytes
from kvcommons_operator.api.pool import KVCachePoolSpec, Placement
from kvcommons_operator.build import pods, redis, secrets
from kvcommons_operator.build.meta import Child, Owner
from kvcommons_operator.observed import Install

CERTIFICATES_PATH = "/etc/kvcommons/index-tls"
PASSWORD_PATH = "/etc/kvcommons/index"
PAGE_BYTES = 4096
_PREFIX_NAME_CHARACTERS_MAX = 48


@dataclass(frozen=True, kw_only=True)
class Pool:
    """One pool."""

    owner: Owner
    spec: KVCachePoolSpec
    install: Install

    @property
    def per_node(self) -> bool:
        """One cache node a Kubernetes node; else one in each engine pod."""
        return self.spec.placement == Placement.PER_NODE

    @property
    def arena_bytes(self) -> int:
        """The memory tier of each node, in whole pages."""
        huge = self.spec.tiers.memory.huge_pages
        page = quantity_bytes(huge.value) if huge is not None else PAGE_BYTES
        return max(page, quantity_bytes(self.spec.tiers.memory.capacity) // page * page)

    @property
    def prefix(self) -> str:
        """What all keys of the pool in the index begin with."""
        external = self.spec.index.external
        if external is not None and external.key_prefix is not None:
            return external.key_prefix
        return f"kvc:{self.owner.namespace}:{names.shortened(self.owner.name, _PREFIX_NAME_CHARACTERS_MAX)}:"

    @property
    def node_image(self) -> str:
        """Of cache nodes and of the payload."""
        return self.spec.images.node or self.install.node_image

    @property
    def keys_name(self) -> str:
        """Of the Secret that cache nodes mount."""
        return names.child(self.owner.name, "node-keys")

    @property
    def salt(self) -> tuple[str, str]:
        """(name, key) of the Secret that routers make salts with."""
        given = self.spec.tenancy.salt_secret_ref
        return (given.name, given.key) if given else (secrets.salt_name(self.owner), secrets.SALT_SECRET)

    def child(self, component: str, part: str) -> Child:
        """A child named after the pool."""
        return Child(owner=self.owner, component=component, name=names.child(self.owner.name, part))

    def managed_index(self) -> redis.ManagedIndex | None:
        """The Redis that the operator runs for this pool, if it does."""
        managed = self.spec.index.managed
        if managed is None:
            return None
        scheduling: dict[str, Any] = {}
        if managed.node_selector:
            scheduling["nodeSelector"] = dict(managed.node_selector)
        if managed.tolerations:
            scheduling["tolerations"] = [toleration.to_dict() for toleration in managed.tolerations]
        given = managed.resources
        resources = given.to_dict() if given.requests or given.limits else {}
        return redis.ManagedIndex(
            owner=self.owner,
            install=self.install,
            prefix=self.prefix,
            memory_bytes=quantity_bytes(managed.max_memory),
            sentinel=managed.replicas == redis.SENTINEL_REPLICAS,
            image=managed.image or "",
            resources=resources,
            scheduling=scheduling,
        )


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What a container needs to reach something: variables, mounts, and the pod's volumes for them."""

    env: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)


def index_wiring(pool: Pool) -> Wiring:
    """How nodes and routers reach the pool's index."""
    managed = pool.managed_index()
    wiring = Wiring(env=[pods.env("KVCOMMONS_INDEX__PREFIX", pool.prefix)])
    if managed is not None:
        wiring.env.append(pods.env("KVCOMMONS_INDEX__URL", managed.url))
        _credentials(wiring, redis.USER, managed.auth_name, "password")
        return wiring
    _external(pool, wiring)
    return wiring


def _external(pool: Pool, wiring: Wiring) -> None:
    external = pool.spec.index.external
    if external is None:
        return
    if external.url_secret_ref is not None:
        ref = external.url_secret_ref
        wiring.env.append(pods.env_secret("KVCOMMONS_INDEX__URL", ref.name, ref.key))
    else:
        secure = "rediss" if external.tls is not None else "redis"
        url = external.url or ""
        if external.sentinel is not None:
            where = external.sentinel
            url = f"{secure}+sentinel://{','.join(where.addresses)}/{where.master_name}/{where.database}"
        elif external.cluster is not None:
            url = f"{secure}+cluster://{','.join(external.cluster.addresses)}"
        wiring.env.append(pods.env("KVCOMMONS_INDEX__URL", url))
    if external.password_secret_ref is not None:
        password = external.password_secret_ref
        _credentials(wiring, external.username or "", password.name, password.key)
    if external.tls is not None:
        _certificates(pool, wiring)


def _credentials(wiring: Wiring, username: str, secret: str, key: str) -> None:
    if username:
        wiring.env.append(pods.env("KVCOMMONS_INDEX__USERNAME", username))
    wiring.env.append(pods.env("KVCOMMONS_INDEX__PASSWORD_FILE", f"{PASSWORD_PATH}/password"))
    wiring.mounts.append(pods.mount("kvcommons-index-auth", PASSWORD_PATH, read_only=True))
    wiring.volumes.append(pods.secret_volume("kvcommons-index-auth", secret, [(key, "password")]))


def _certificates(pool: Pool, wiring: Wiring) -> None:
    external = pool.spec.index.external
    tls = external.tls if external is not None else None
    sources = []
    if tls is not None and tls.ca_secret_ref is not None:
        ref = tls.ca_secret_ref
        sources.append({"secret": {"name": ref.name, "items": [{"key": ref.key, "path": "ca.crt"}]}})
        wiring.env.append(pods.env("KVCOMMONS_INDEX__TLS_CA_FILE", f"{CERTIFICATES_PATH}/ca.crt"))
    if tls is not None and tls.client_secret_ref is not None:
        items = [{"key": key, "path": key} for key in ("tls.crt", "tls.key")]
        sources.append({"secret": {"name": tls.client_secret_ref.name, "items": items}})
        wiring.env.append(pods.env("KVCOMMONS_INDEX__TLS_CERT_FILE", f"{CERTIFICATES_PATH}/tls.crt"))
        wiring.env.append(pods.env("KVCOMMONS_INDEX__TLS_KEY_FILE", f"{CERTIFICATES_PATH}/tls.key"))
    if sources:
        projected = {"name": "kvcommons-index-tls", "projected": {"defaultMode": pods.SECRET_MODE, "sources": sources}}
        wiring.volumes.append(projected)
        wiring.mounts.append(pods.mount("kvcommons-index-tls", CERTIFICATES_PATH, read_only=True))
