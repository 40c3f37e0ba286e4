"""All that is asked of a cluster at once: resources, their pods, and what each cache node says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kvcommons_cli.cluster_api import PROXY_SECONDS_MAX, ClusterApi, ClusterError
from kvcommons_cli.resources import (
    CONTROL_PORT,
    GROUP,
    PART_OF,
    PLURALS,
    VERSION,
    NodeReport,
    Pod,
    Resource,
    node_report,
    pod,
    resource,
)

PROXIED_AT_ONCE = 16
NODES_ASKED_MAX = 200
"""Each costs two requests through the API server."""
KINDS = ("KVCachePool", "InferenceDeployment", "InferenceRole")


@dataclass
class World:
    """What there is. `problems` says what could not be asked."""

    pools: list[Resource] = field(default_factory=list)
    deployments: list[Resource] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    reports: dict[tuple[str, str], NodeReport] = field(default_factory=dict)
    """(namespace, pod) -> what its cache node says."""
    problems: list[str] = field(default_factory=list)

    @property
    def cache_nodes(self) -> list[Pod]:
        return [one for one in self.pods if one.has_cache_node]

    @property
    def engines(self) -> list[Pod]:
        return [one for one in self.pods if one.component == "engine"]

    def nodes_of(self, pool: Resource) -> list[Pod]:
        return [one for one in self.cache_nodes if one.pool == (pool.namespace, pool.name)]

    def report(self, one: Pod) -> NodeReport:
        return self.reports.get((one.namespace, one.name), NodeReport(error="not asked"))


def scoped(group_path: str, namespace: str, plural: str) -> str:
    """Path of a list, in one namespace or in all."""
    return f"{group_path}/namespaces/{namespace}/{plural}" if namespace else f"{group_path}/{plural}"


def read(api: ClusterApi, namespace: str = "", ask_nodes: bool = True) -> World:
    """:raises ClusterError: if not even the project's resources can be listed."""
    world = World()
    base = f"/apis/{GROUP}/{VERSION}"
    try:
        world.pools = [resource(one, KINDS[0]) for one in api.items(scoped(base, namespace, PLURALS[0]))]
        world.deployments = [resource(one, KINDS[1]) for one in api.items(scoped(base, namespace, PLURALS[1]))]
    except ClusterError as error:
        if error.status == 404:
            raise ClusterError(
                f"{api.described}: kvcommons is not installed there (no {GROUP}/{VERSION})",
                "install the chart, or see `kvcommons doctor`",
                404,
            ) from error
        raise
    try:
        world.pods = [pod(one) for one in api.items(scoped("/api/v1", namespace, "pods"), labelSelector=PART_OF)]
    except ClusterError as error:
        world.problems.append(f"pods are not shown: {error.what}")
    if ask_nodes:
        _ask_nodes(api, world)
    return world


def _ask_nodes(api: ClusterApi, world: World) -> None:
    asked = [one for one in world.cache_nodes if one.phase == "Running"]
    if len(asked) > NODES_ASKED_MAX:
        world.problems.append(f"of {len(asked)} cache nodes the first {NODES_ASKED_MAX} were asked")
    world.reports = ask_nodes(api, asked[:NODES_ASKED_MAX])
    refused = sorted({report.error for report in world.reports.values() if report.error})
    if refused:
        count = sum(1 for report in world.reports.values() if report.error)
        world.problems.append(f"{count} of {len(world.reports)} cache nodes could not be asked: {refused[0]}")


def ask_nodes(api: ClusterApi, pods: Sequence[Pod]) -> dict[tuple[str, str], NodeReport]:
    """What each of them says, through the API server's proxy."""
    with ThreadPoolExecutor(PROXIED_AT_ONCE) as pool:
        reports = pool.map(lambda one: _ask(api, one), pods)
        return {(one.namespace, one.name): report for one, report in zip(pods, reports, strict=True)}


def _ask(api: ClusterApi, one: Pod) -> NodeReport:
    def path(of: str) -> str:
        return api.pod_path(one.namespace, one.name, CONTROL_PORT, of)

    try:
        readyz = api.get(path("/readyz"), PROXY_SECONDS_MAX)
        return node_report(readyz, api.text(path("/metrics"), PROXY_SECONDS_MAX))
    except ClusterError as error:
        return NodeReport(error=error.what)
