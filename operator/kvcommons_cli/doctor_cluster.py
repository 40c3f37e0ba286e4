"""What is looked at in a cluster, and in which order; what follows from it is in doctor_rules.py."""

from __future__ import annotations

from collections.abc import Iterator

from kvcommons_cli import doctor_rights, doctor_rules
from kvcommons_cli.cluster_api import ClusterApi, ClusterError, Manifest
from kvcommons_cli.cluster_world import World, read
from kvcommons_cli.findings import Finding, Level, note, ok, problem, warning
from kvcommons_cli.resources import GROUP, PLURALS, VERSION, Pod, pod

OPERATOR_LABEL = "app.kubernetes.io/name=kvcommons-operator"
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LEASE_VARIABLE = "KVCOMMONS_OPERATOR__LEASE_NAME"
LEASE_NAME_DEFAULT = "kvcommons-operator"


def examine(api: ClusterApi, namespace: str = "") -> list[Finding]:
    """:raises ClusterError: if the API server does not answer at all."""
    version = api.get("/version")
    found = [doctor_rules.server(api.described, version)]
    found += [_definition(api, plural) for plural in PLURALS]
    found += doctor_rights.of_this_user(api, namespace)
    operators = _operators(api)
    if operators is not None:
        found += doctor_rules.operator(operators)
        found += _leader(api, operators)
        found += doctor_rights.of_the_operator(api, operators)
    else:
        found.append(note("operator", "pods of all namespaces may not be listed, so it was not looked for"))
    found += _resources(api, namespace)
    return list(dict.fromkeys(found))  # a pod may be found in two ways


def _definition(api: ClusterApi, plural: str) -> Finding:
    name = f"{plural}.{GROUP}"
    try:
        return doctor_rules.definition(name, api.get(f"{CRD_PATH}/{name}"))
    except ClusterError as error:
        if error.status == 404:
            return doctor_rules.definition(name, None)
        if error.status != 403:
            raise
    return _served(api, plural)


def _served(api: ClusterApi, plural: str) -> Finding:
    """For who may not read definitions: whether the kind is served at all."""
    name = f"{plural}.{GROUP}"
    try:
        known = api.get(f"/apis/{GROUP}/{VERSION}").get("resources") or []
    except ClusterError as error:
        if error.status != 404:
            raise
        known = []
    if any(one.get("name") == plural for one in known):
        return ok(name, f"{VERSION} is served")
    return doctor_rules.definition(name, None)


def _operators(api: ClusterApi) -> list[Pod] | None:
    """The operator's pods; None where this user may not look."""
    try:
        return [pod(one) for one in api.items("/api/v1/pods", labelSelector=OPERATOR_LABEL)]
    except ClusterError as error:
        if error.status != 403:
            raise
        return None


def _leader(api: ClusterApi, operators: list[Pod]) -> Iterator[Finding]:
    leases = {(one.namespace, one.environment.get(LEASE_VARIABLE) or LEASE_NAME_DEFAULT) for one in operators}
    for namespace, name in sorted(leases):
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
        lease: Manifest | None
        try:
            lease = api.get(path)
        except ClusterError as error:
            if error.status not in (403, 404):
                raise
            if error.status == 403:
                yield note("operator", f"its Lease in {namespace} may not be read, so its leader is not known")
                continue
            lease = None
        yield doctor_rules.leader(namespace, lease)


def _resources(api: ClusterApi, namespace: str) -> Iterator[Finding]:
    try:
        world = read(api, namespace)
    except ClusterError as error:
        if error.status == 404:  # said already
            return
        yield problem("resources", error.what, error.remedy)
        return
    for text in world.problems:
        remedy = (
            "where pods/proxy may not be read, or a NetworkPolicy keeps the API server out, conditions tell the most"
        )
        yield warning("cluster", text, remedy)
    if not world.pools and not world.deployments:
        yield note("resources", "there is no KVCachePool and no InferenceDeployment", "see docs/examples")
    for one in (*world.pools, *world.deployments):
        yield from doctor_rules.conditions(one)
    yield from doctor_rules.pods(world.pods)
    yield from _cache_nodes(world)
    yield from _security(api, world)


def _cache_nodes(world: World) -> Iterator[Finding]:
    """Those that are well in one line."""
    found = [one for each in world.cache_nodes for one in doctor_rules.cache_node(each, world.report(each))]
    well = [one for one in found if one.level == Level.OK]
    yield from (one for one in found if one.level != Level.OK)
    if len(well) == 1:
        yield well[0]
    elif well:
        yield ok("cache nodes", f"{len(well)} are ready and connected to their index")


def _security(api: ClusterApi, world: World) -> Iterator[Finding]:
    """Namespaces whose PodSecurity level does not allow what a pool's placement needs."""
    for pool in world.pools:
        users = {one.namespace for one in world.deployments if doctor_rules.uses(one, pool)}
        for name in sorted({pool.namespace, *users}):
            try:
                namespace = api.get(f"/api/v1/namespaces/{name}")
            except ClusterError as error:
                if error.status != 403:
                    raise
                continue
            yield from doctor_rules.pod_security(pool, name, namespace)
