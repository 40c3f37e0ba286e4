"""The index of a pool: a Redis that the operator runs, or one that the user has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule, Transition
from kvcommons_operator.api.common import EMPTY, Image, Labels, ListType, LocalRef, SecretKeyRef, StrictInt
from kvcommons_operator.api.pods import Resources, Tolerations
from kvcommons_operator.api.quantities import Size, Spelt

HostPort = Annotated[str, Field(min_length=3, max_length=259, pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$")]

Url = Annotated[
    str,
    Spelt(
        r"^rediss?://[A-Za-z0-9._-]+(:[0-9]{1,5})?(/[0-9]{1,4})?$",
        "write url as redis://HOST:PORT/DB, or rediss:// for TLS; user and password go to username and passwordSecretRef",
        512,
    ),
]


class ManagedIndex(Model):
    """A Redis that the operator runs, with a user and a password of its own. It keeps nothing on disk: cache nodes tell it again what
    they have."""

    replicas: Literal[1, 3] = 1
    """1, or 3 with Sentinel, so that another one takes over where one fails; three are spread over nodes."""
    max_memory: Annotated[str, Size("16Mi", "1Ti")] = "256Mi"
    """How much it may hold: about 154 bytes for a chunk of 256 tokens. What is used least goes first."""
    image: Image | None = None
    """Image of Redis or Valkey, 6.2 or newer; the operator's default when left out."""
    resources: Resources = Resources()
    """What each pod asks for; maxMemory and a fourth more when left out."""
    storage: Literal["none"] = "none"
    """What is kept over restarts. It is always none: the index is told anew."""
    node_selector: Labels = EMPTY
    """Labels that a node must have."""
    tolerations: Tolerations = ()
    """Taints of nodes that the pods put up with."""


class Sentinel(Model):
    """A Redis watched over by Sentinel."""

    master_name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._-]+$")]
    """Name by which the Sentinels know it."""
    addresses: Annotated[tuple[HostPort, ...], Field(min_length=1, max_length=16), ListType("atomic")]
    """The Sentinels, each as HOST:PORT."""
    database: Annotated[StrictInt, Field(ge=0, le=1_023)] = 0
    """Number of the database."""


class RedisCluster(Model):
    """A Redis Cluster."""

    addresses: Annotated[tuple[HostPort, ...], Field(min_length=1, max_length=16), ListType("atomic")]
    """Some of its nodes, each as HOST:PORT; the others are learnt from them."""


class IndexTls(Model):
    """TLS to an external Redis."""

    ca_secret_ref: SecretKeyRef | None = None
    """Certificate of who signed the server's; the system's own when left out."""
    client_secret_ref: LocalRef | None = None
    """A Secret of type kubernetes.io/tls with the certificate that the clients show."""


class ExternalIndex(Model):
    """A Redis or Valkey (6.2 or newer) that you run. Exactly one of url, urlSecretRef, sentinel and cluster says where."""

    url: Url | None = None
    """One server: redis://HOST:PORT/DB, or rediss:// for TLS. It holds no password; use passwordSecretRef."""
    url_secret_ref: SecretKeyRef | None = None
    """Key of a Secret whose value is the URL, with user and password in it if you like."""
    sentinel: Sentinel | None = None
    """A Redis watched over by Sentinel."""
    cluster: RedisCluster | None = None
    """A Redis Cluster."""
    username: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\s:@/]+$")] | None = None
    """User of the ACL; default when left out."""
    password_secret_ref: SecretKeyRef | None = None
    """Key of a Secret whose value is the password."""
    tls: IndexTls | None = None
    """TLS to the servers; plain when left out, unless the URL is rediss://."""
    key_prefix: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$")] | None = None
    """All keys of this pool begin with it; kvc:NAMESPACE:NAME: when left out. No two pools may share one. It can't be changed."""

    RULES = (
        Rule(
            cel=" + ".join(f"(has(self.{name}) ? 1 : 0)" for name in ("url", "urlSecretRef", "sentinel", "cluster"))
            + " == 1",
            message="give exactly one of url, urlSecretRef, sentinel and cluster",
            holds=lambda it: sum(x is not None for x in (it.url, it.url_secret_ref, it.sentinel, it.cluster)) == 1,
        ),
        Rule(
            cel="!has(self.urlSecretRef) || (!has(self.username) && !has(self.passwordSecretRef))",
            message="with urlSecretRef the user and password are part of the URL; leave out username and passwordSecretRef",
            holds=lambda it: it.url_secret_ref is None or (it.username is None and it.password_secret_ref is None),
            field=".urlSecretRef",
        ),
        Rule(
            cel="!has(self.tls) || !has(self.url) || self.url.startsWith('rediss://')",
            message="with tls write the url as rediss://",
            holds=lambda it: it.tls is None or it.url is None or it.url.startswith("rediss://"),
            field=".url",
        ),
    )
    TRANSITIONS = (
        Transition(
            cel="has(self.keyPrefix) == has(oldSelf.keyPrefix)"
            " && (!has(self.keyPrefix) || self.keyPrefix == oldSelf.keyPrefix)",
            message="keyPrefix can't be changed; create another pool",
            holds=lambda old, new: old.key_prefix == new.key_prefix,
            field=".keyPrefix",
        ),
    )


class Index(Model):
    """The Redis that says which cache node has what; exactly one of managed and external."""

    managed: ManagedIndex | None = None
    """A Redis that the operator runs."""
    external: ExternalIndex | None = None
    """A Redis that you run."""

    RULES = (
        Rule(
            cel="has(self.managed) != has(self.external)",
            message="give exactly one of managed and external (managed is the default of a pool that says neither)",
            holds=lambda it: (it.managed is None) != (it.external is None),
        ),
    )
    TRANSITIONS = (
        Transition(
            cel="has(self.managed) == has(oldSelf.managed)",
            message="a managed index can't become an external one, nor back; create another pool and let the "
            "InferenceDeployments' poolRef name it",
            holds=lambda old, new: (old.managed is None) == (new.managed is None),
        ),
    )
