"""Cache nodes: what the DaemonSet and the sidecars are, and that the node itself takes the settings."""

from __future__ import annotations

from typing import Any

import operator_cases as cases
import operator_examples as examples
import pytest
from kvcommons_core.settings import NodeSettings, load_settings
from kvcommons_node.preflight import MEMORY_LEFT_BYTES_MIN
from kvcommons_operator.api import parse_quantity
from kvcommons_operator.observed import Install, Manifest
from kvcommons_operator.plan import plan_deployment, plan_pool


def daemon_set(pool: Manifest, **more: Any) -> Manifest:
    return examples.named(plan_pool(pool, examples.pool_world(**more)).apply, "DaemonSet")


def pod_of(pool: Manifest, **more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = daemon_set(pool, **more)["spec"]["template"]["spec"]
    return spec


def container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in (*spec["containers"], *spec.get("initContainers", ())) if one["name"] == name]
    return dict(found)


def environment(one: dict[str, Any]) -> dict[str, str]:
    """What a process of this container sees, with a Secret's or field's value in place of its source."""
    return {variable["name"]: variable.get("value", "redis://from-a-source/0") for variable in one["env"]}


@pytest.mark.parametrize("name", cases.pools())
def test_the_node_takes_the_settings_that_it_is_given(name: str) -> None:
    """Every variable is one that the node knows, with a value that it takes: a pod never fails for its own operator."""
    pool = cases.pools()[name]
    if pool["spec"]["placement"] == "sidecar":
        (spec,) = engine_pods(pool)
        node = container(spec, "cache-node")
    else:
        node = container(pod_of(pool), "cache-node")
    settings = load_settings(NodeSettings, environ=environment(node))
    assert settings.node.peers is not None
    port = pool["spec"].get("transport", {}).get("port", 9471)
    assert (settings.node.peers.listen, settings.node.peers.advertise) == (
        f"0.0.0.0:{port}",
        f"$(KVCOMMONS_POD_IP):{port}",  # the kubelet puts the address in
    )
    assert settings.node.arena_bytes == parse_quantity(pool["spec"]["tiers"]["memory"]["capacity"])
    assert settings.node.control_host == "0.0.0.0"
    assert settings.index.url
    assert settings.index.prefix.startswith("kvc:")


def engine_pods(pool: Manifest) -> list[dict[str, Any]]:
    children = plan_deployment(examples.deployment(), examples.world(pool=pool)).apply
    return [examples.named(children, "Deployment", "chat-engine")["spec"]["template"]["spec"]]


@pytest.mark.parametrize("capacity", ["64Mi", "8Gi", "900G"])
def test_the_pod_pays_for_its_arena(capacity: str) -> None:
    """The container's memory is the arena and what the node asks to be left beside it, as request and as limit."""
    node = container(pod_of(examples.pool(tiers={"memory": {"capacity": capacity}})), "cache-node")
    arena = int(environment(node)["KVCOMMONS_NODE__ARENA_BYTES"])
    for kind in ("requests", "limits"):
        memory = parse_quantity(node["resources"][kind]["memory"])
        assert arena + MEMORY_LEFT_BYTES_MIN < memory <= arena * 34 // 32 + (513 << 20)


def test_resources_of_the_pool_are_beside_its_arena() -> None:
    """What the pool asks for is added to the arena; too little for the node itself becomes enough."""
    given = {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "2Gi", "cpu": "4"}}
    told = container(pod_of(examples.pool(resources=given)), "cache-node")["resources"]
    assert told["requests"] == {"cpu": "2", "memory": str(9 << 30)}
    assert told["limits"] == {"cpu": "4", "memory": str(10 << 30)}
    tiny = container(pod_of(examples.pool(resources={"requests": {"memory": "1Mi"}})), "cache-node")["resources"]
    assert tiny["requests"]["memory"] == tiny["limits"]["memory"] == str((8 << 30) + MEMORY_LEFT_BYTES_MIN)


def test_huge_pages_are_asked_for_in_place_of_memory() -> None:
    """With huge pages the arena is a request of those, and memory only what is beside."""
    pool = examples.pool(tiers={"memory": {"hugePages": "2Mi"}})
    told = container(pod_of(pool), "cache-node")["resources"]
    assert told["limits"]["hugepages-2Mi"] == told["requests"]["hugepages-2Mi"] == str(8 << 30)
    assert parse_quantity(told["limits"]["memory"]) < 1 << 30


def test_an_arena_of_huge_pages_is_whole_pages() -> None:
    """Kubernetes takes multiples of a page alone: the arena is rounded down to one."""
    pool = examples.pool(tiers={"memory": {"capacity": "115573000", "hugePages": "2Mi"}})
    node = container(pod_of(pool), "cache-node")
    assert node["resources"]["limits"]["hugepages-2Mi"] == str(55 * (2 << 20))
    assert environment(node)["KVCOMMONS_NODE__ARENA_BYTES"] == str(55 * (2 << 20))


def test_what_is_asked_for_is_never_over_what_is_allowed() -> None:
    """A limit without a request, or one under our own default, makes requests that fit under it."""
    for given in (
        {"limits": {"memory": "300Mi", "cpu": "100m"}},
        {"requests": {"memory": "1Mi"}, "limits": {"memory": "300Mi"}},
    ):
        told = container(pod_of(examples.pool(resources=given)), "cache-node")["resources"]
        assert int(told["requests"]["memory"]) <= int(told["limits"]["memory"])
        assert "cpu" not in told["requests"] or "cpu" not in told["limits"]


def test_nobody_in_the_pod_has_more_rights_than_it_needs() -> None:
    """Holder and daemon run without root, capabilities and a writable image; only the step that gives the host's directory to
    them is root, with three capabilities."""
    spec = pod_of(examples.pool())
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for one in spec["containers"]:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    prepare = container(spec, "prepare")["securityContext"]
    assert prepare["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN", "FOWNER", "DAC_OVERRIDE"]}


def test_the_holder_outlives_the_daemon_and_engines_never_see_its_socket() -> None:
    """The arena's descriptor is in a container of its own; its socket is on a volume that engines do not mount."""
    spec = pod_of(examples.pool())
    holder, node = container(spec, "arena-holder"), container(spec, "cache-node")
    socket = environment(node)["KVCOMMONS_NODE__HOLDER_SOCKET"]
    assert socket in holder["command"]
    (engine,) = engine_pods(examples.pool())
    mounted = {mount["mountPath"] for mount in container(engine, "engine")["volumeMounts"]}
    assert not any(socket.startswith(f"{path}/") for path in mounted)
    assert environment(node)["KVCOMMONS_NODE__SOCKET_PATH"].rpartition("/")[0] in mounted


def test_engines_of_other_users_are_let_in_by_their_group() -> None:
    """Whoever is in the group that owns the socket may attach, and engines' pods are, as whichever user they run."""
    settings = load_settings(NodeSettings, environ=environment(container(pod_of(examples.pool()), "cache-node")))
    assert (settings.node.allowed_uids, settings.node.allowed_gids) == ((0, 65532), (65532,))
    ifd = examples.deployment(podTemplate={"securityContext": {"runAsUser": 4321}})
    children = plan_deployment(ifd, examples.world()).apply
    security = examples.named(children, "Deployment", "chat-engine")["spec"]["template"]["spec"]["securityContext"]
    assert (security["runAsUser"], security["supplementalGroups"]) == (4321, [65532])
    owned = examples.pool(podTemplate={"securityContext": {"runAsUser": 7, "runAsGroup": 8}})
    assert "7:8" in container(pod_of(owned), "prepare")["command"]
    assert environment(container(pod_of(owned), "cache-node"))["KVCOMMONS_NODE__ALLOWED_GIDS"] == "8"
    (engine,) = engine_pods(owned)
    assert engine["securityContext"]["supplementalGroups"] == [8]


def test_two_pools_never_share_a_directory_of_the_host() -> None:
    """Namespace a-b with pool c and namespace a with pool b-c have different sockets."""
    paths = set()
    for namespace, name in (("a-b", "c"), ("a", "b-c")):
        volumes = pod_of(examples.pool(name, namespace))["volumes"]
        paths |= {volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume}
    assert len(paths) == 2


def test_sidecars_start_before_the_engine_and_never_keep_it_from_serving() -> None:
    """Holder and node are native sidecars, first in order; their readiness is not the pod's, unless the pool fails closed."""
    (spec,) = engine_pods(examples.pool(placement="sidecar"))
    order = [one["name"] for one in spec["initContainers"]]
    assert order == ["prepare", "arena-holder", "cache-node", "payload", "check"]
    always = [one["name"] for one in spec["initContainers"] if one.get("restartPolicy") == "Always"]
    assert always == ["arena-holder", "cache-node"]
    assert "readinessProbe" not in container(spec, "cache-node")
    (closed,) = engine_pods(examples.pool(placement="sidecar", failureMode="FailClosed"))
    assert "readinessProbe" in container(closed, "cache-node")
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_a_change_of_the_pool_is_told_by_the_hash_of_the_template() -> None:
    """Whatever changes the pods changes the hash; what does not, does not."""

    def mark(pool: Manifest) -> str:
        annotations: dict[str, str] = daemon_set(pool)["spec"]["template"]["metadata"]["annotations"]
        return annotations["kvcommons.io/template-hash"]

    base = mark(examples.pool())
    assert mark(examples.pool(updateStrategy={"type": "OnDelete"})) == base
    assert mark(examples.pool(tiers={"memory": {"capacity": "9Gi"}})) != base
    assert mark(examples.pool(logLevel="debug")) != base


def test_the_image_of_a_pool_is_its_own_or_the_operators() -> None:
    """A pool may name its image; without, a newer operator brings its own."""
    assert container(pod_of(examples.pool()), "cache-node")["image"] == "kvcommons-node:1.0.0"
    mine = examples.pool(images={"node": "mine:2"})
    assert {one["image"] for one in pod_of(mine)["containers"]} == {"mine:2"}
    install = Install(**{**vars(examples.INSTALL), "node_image": "kvcommons-node:2.0.0"})
    assert container(pod_of(examples.pool(), install=install), "cache-node")["image"] == "kvcommons-node:2.0.0"
