"""Who may use a pool, and what keeps tenants and strangers apart."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import (
    HostName,
    Label,
    LabelSelector,
    ListType,
    LocalRef,
    ObjectName,
    Percent,
    SecretKeyRef,
    StrictBool,
    StrictInt,
)
from kvcommons_operator.api.shared import NetworkAccess

QUOTAS_MAX: Final = 256


class NamespacesFrom(StrEnum):
    """Whose InferenceDeployments may use the pool."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"
    NAMES = "Names"


class AllowedNamespaces(Model):
    """Whose InferenceDeployments may use the pool."""

    from_: Annotated[NamespacesFrom, Field(alias="from")] = NamespacesFrom.SAME
    """Same: only those of the pool's own namespace. All: every one. Selector: namespaces with the labels of `selector`. Names: the
    namespaces in `names`. The pool's own namespace is always allowed."""
    selector: LabelSelector | None = None
    """Labels of namespaces, for from Selector."""
    names: Annotated[tuple[Label, ...], Field(max_length=64), ListType("set")] = ()
    """Names of namespaces, for from Names."""
    hostnames: Annotated[tuple[HostName, ...], Field(max_length=16), ListType("set")] = ()
    """Host names that deployments of other namespaces may have routed to their routers by gateway.httpRoute, such as
    chat.example.com, or *.teams.example.com for all below it; none when empty."""

    RULES = (
        Rule(
            cel="has(self.selector) == (self.from == 'Selector')",
            message="selector goes with from Selector, and only with it",
            holds=lambda it: (it.selector is not None) == (it.from_ == "Selector"),
            field=".selector",
        ),
        Rule(
            cel="(self.names.size() > 0) == (self.from == 'Names')",
            message="names goes with from Names, and only with it",
            holds=lambda it: bool(it.names) == (it.from_ == "Names"),
            field=".names",
        ),
    )


class Quota(Model):
    """How much of the pool a tenant may fill; over it, its own blocks go first."""

    tenant: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$")]
    """Name of the tenant, as in the router's file of keys."""
    memory_percent: Percent
    """Share of every cache node's memory."""


class Tenancy(Model):
    """Who shares the pool, and what keeps them apart."""

    salt_secret_ref: SecretKeyRef | None = None
    """Secret that tenants' salts are made with; one is made for the pool when left out. Changing it empties the cache."""
    quotas: Annotated[tuple[Quota, ...], Field(max_length=QUOTAS_MAX), ListType("map", "tenant")] = ()
    """Shares of tenants; a tenant without one may fill everything."""
    tenant_percent_max: Annotated[StrictInt, Field(ge=1, le=100)] = 100
    """What any one tenant may hold of a cache node's memory while others want room; above it its blocks go first. 100 for no limit."""
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    """Whose InferenceDeployments may use the pool."""


class IssuerRef(Model):
    """An issuer of cert-manager."""

    name: ObjectName
    """Name of the issuer."""
    kind: Literal["Issuer", "ClusterIssuer"] = "Issuer"
    """Issuer in the same namespace, or ClusterIssuer."""
    group: ObjectName = "cert-manager.io"
    """API group of the issuer."""


class CertManager(Model):
    """Certificates by cert-manager."""

    issuer_ref: IssuerRef
    """Who issues them."""


class PoolTls(Model):
    """TLS between cache nodes; exactly one source of certificates."""

    cert_manager: CertManager | None = None
    """Certificates are asked of cert-manager, which must be installed."""
    secret_ref: LocalRef | None = None
    """A Secret with the keys tls.crt, tls.key and ca.crt."""

    RULES = (
        Rule(
            cel="has(self.certManager) != has(self.secretRef)",
            message="give exactly one of certManager and secretRef",
            holds=lambda it: (it.cert_manager is None) != (it.secret_ref is None),
        ),
    )


class PoolSecurity(Model):
    """What keeps others out."""

    tls: PoolTls | None = None
    """TLS between cache nodes; plain TCP within the pool's NetworkPolicy when left out."""
    multi_tenant: StrictBool = False
    """Whether requests without a tenant's salt are not cached at all."""
    network_policy: NetworkAccess = NetworkAccess()
    """Who may connect to the pool's pods."""
