"""Settings of `kvcommons operator`: KVCOMMONS_OPERATOR__NAME in the environment, [operator] in a file, --name as a flag."""

from __future__ import annotations

from typing import Self

from kvcommons_core.settings import Section, Words
from pydantic import Field, model_validator


class OperatorSection(Section):
    """The operator."""

    namespaces: Words = ()
    """Only these namespaces, separated by commas; none given: all of them."""
    namespace: str = Field(default="", max_length=63)
    """Its own: the Lease and the root secret are there. Empty: that of its pod, else kvcommons-system."""
    kubeconfig: str = ""
    """A file; empty in a pod, else $KUBECONFIG or ~/.kube/config."""
    kube_context: str = ""
    """Of the kubeconfig; its current one when empty."""
    identity: str = ""
    """In the Lease; the host's name and a random part when empty."""
    lease_name: str = Field(default="kvcommons-operator", min_length=1, max_length=63)
    """Operators that share it elect one among them."""
    lease_seconds: int = Field(default=15, ge=3, le=600)
    """A leader that was not heard of for so long is succeeded; it stops by itself well before."""
    root_secret_file: str = ""
    """At least 32 random bytes from which all generated secrets are derived; empty: the Secret root_secret_name."""
    root_secret_name: str = Field(default="kvcommons-operator-root", min_length=1, max_length=253)
    """Made once in the operator's namespace if it is not there. Losing it changes every generated secret."""
    node_image: str = Field(default="ghcr.io/kvcommons/kvcommons-node:0.1.0", min_length=1, max_length=512)
    """Image of cache nodes and of the payload that engines get."""
    router_image: str = Field(default="ghcr.io/kvcommons/kvcommons-router:0.1.0", min_length=1, max_length=512)
    """Image of routers."""
    redis_image: str = Field(default="docker.io/valkey/valkey:8.1", min_length=1, max_length=512)
    """Image of a managed index."""
    engine_images: dict[str, str] = Field(
        default={
            "vllm": "docker.io/vllm/vllm-openai:v{version}",
            "sglang": "docker.io/lmsysorg/sglang:v{version}",
        }
    )
    """By engine, with {version} where the version goes, as JSON."""
    image_pull_policy: str = Field(default="IfNotPresent", pattern="^(Always|IfNotPresent|Never)$")
    """Of our own images: Always, IfNotPresent or Never."""
    image_pull_secrets: Words = ()
    """Names of Secrets in the namespaces of the pods, separated by commas."""
    cluster_domain: str = Field(default="cluster.local", min_length=1, max_length=253)
    """Of the cluster's DNS."""
    pod_labels: dict[str, str] = Field(default={"app.kubernetes.io/name": "kvcommons-operator"})
    """Labels of the operator's own pods, which NetworkPolicies let in, as JSON."""
    metrics_namespaces: dict[str, str] = Field(default={})
    """Labels of the namespaces whose pods may scrape metrics, as JSON; empty for every namespace."""
    workers: int = Field(default=16, ge=1, le=64)
    """Objects that are reconciled at once."""
    resync_seconds: int = Field(default=600, ge=10)
    """Every object is looked at again this often, to within a fifth."""
    node_polls_per_second_max: int = Field(default=20, ge=1, le=1_000)
    """Cache nodes that are asked for their state, all pools together; of those that are new or not well, ten times as many."""
    events_after_seconds: int = Field(default=10, ge=0, le=600)
    """The Events of a pod, or of what should make it, are read when it has not come forward for so long."""
    http_host: str = "0.0.0.0"
    """Address of /metrics, /healthz and /readyz."""
    http_port: int = Field(default=8080, ge=0, le=65_535)
    """0 for one that is free."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """debug, info, warning or error."""
    log_json: bool = False
    """One JSON object a line instead of text."""

    @model_validator(mode="after")
    def _files_or_names(self) -> Self:
        for name in self.namespaces:
            if not name.replace("-", "a").isalnum() or len(name) > 63:
                raise ValueError(f"namespaces: {name!r} is no name of a namespace")
        return self


class OperatorSettings(Section):
    """What `kvcommons operator` reads."""

    operator: OperatorSection = OperatorSection()
