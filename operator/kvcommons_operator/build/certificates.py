"""Certificates by which cache nodes know each other: a Secret that is given, or one that cert-manager makes."""

from __future__ import annotations

from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.build import pods
from kvcommons_operator.build.pool import Pool, Wiring
from kvcommons_operator.observed import Manifest

TLS_PATH: Final = "/etc/kvcommons/peer-tls"
VOLUME: Final = "kvcommons-peer-tls"
FILES: Final = ("ca.crt", "tls.crt", "tls.key")


def wiring(pool: Pool) -> tuple[dict[str, str], Wiring]:
    """(what the node's `peers` is told, the Secret's files); nothing without TLS."""
    if pool.spec.security.tls is None:
        return {}, Wiring()
    told = dict(zip(("tls_ca_file", "tls_cert_file", "tls_key_file"), (f"{TLS_PATH}/{file}" for file in FILES), strict=True))
    volume = pods.secret_volume(VOLUME, _secret_name(pool), [(file, file) for file in FILES])
    return told, Wiring(mounts=[pods.mount(VOLUME, TLS_PATH, read_only=True)], volumes=[volume])


def certificate(pool: Pool) -> list[Manifest]:
    """What is asked of cert-manager. Names in it are nobody's address: a certificate of the pool's issuer stands for membership."""
    tls = pool.spec.security.tls
    if tls is None or tls.cert_manager is None:
        return []
    issuer = tls.cert_manager.issuer_ref
    service = names.child(pool.owner.name, "nodes")
    body: dict[str, Any] = {
        "secretName": _secret_name(pool),
        "dnsNames": [f"{service}.{pool.owner.namespace}.svc"],
        "usages": ["digital signature", "key encipherment", "server auth", "client auth"],
        "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
    }
    child = pool.child(names.CACHE_NODE, "node-tls")
    return [child.manifest("cert-manager.io/v1", "Certificate", {"spec": body})]


def _secret_name(pool: Pool) -> str:
    tls = pool.spec.security.tls
    given = tls.secret_ref if tls is not None else None
    return given.name if given is not None else names.child(pool.owner.name, "node-tls")
