"""Disks behind a cache node's memory: its pod's volumes and folders, what the node is told, and what is said about them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import operator_examples as examples
import pytest
from kvcommons_core.settings import NodeSettings, load_settings
from kvcommons_core.settings_tiers import DiskTier
from kvcommons_node.plan import disk_of
from kvcommons_operator import names
from kvcommons_operator.api import parse_quantity
from kvcommons_operator.build.node import PREPARE
from kvcommons_operator.observed import Manifest, TierState
from kvcommons_operator.plan import plan_deployment, plan_pool
from kvcommons_operator.reconcile.nodes import parse_stats
from kvcommons_operator.reconcile.poller import node_shape, with_shares
from kvcommons_operator.troubles import trouble

GIB = 1 << 30


def disk(**where: Any) -> dict[str, Any]:
    return {"type": "disk", "capacity": "10Gi", **where}


def pool(*tiers: dict[str, Any], **more: Any) -> Manifest:
    return examples.pool(tiers={"secondary": list(tiers)}, **more)


def pod_of(wanted: Manifest) -> dict[str, Any]:
    """The specification of the pod that has the cache node."""
    if wanted["spec"]["placement"] == "sidecar":
        children = plan_deployment(examples.deployment(), examples.world(pool=wanted)).apply
        found = examples.named(children, "Deployment", "chat-engine")
    else:
        found = examples.named(plan_pool(wanted, examples.pool_world()).apply, "DaemonSet")
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in (*spec["containers"], *spec["initContainers"]) if one["name"] == name]
    return dict(found)


def told(spec: dict[str, Any]) -> NodeSettings:
    """What the node makes of its variables."""
    environ = {one["name"]: one.get("value", "from-a-source") for one in container(spec, "cache-node")["env"]}
    return load_settings(NodeSettings, environ=environ)


SOURCES = [
    ({"path": "/mnt/nvme0"}, "perNode", {"hostPath": {"path": "/mnt/nvme0", "type": "Directory"}}, "llm.commons"),
    (
        {"pvc": {"claimName": "shared"}},
        "perNode",
        {"persistentVolumeClaim": {"claimName": "shared"}},
        "commons/$(KVCOMMONS_NODE__KUBERNETES_NODE)",
    ),
    ({"emptyDir": {}}, "sidecar", {"emptyDir": {"sizeLimit": str(10 * GIB + (64 << 20))}}, "kvcommons"),
    ({"emptyDir": {"sizeLimit": "12Gi"}}, "perNode", {"emptyDir": {"sizeLimit": "12Gi"}}, "kvcommons"),
    (
        {"pvc": {"size": "11Gi", "storageClassName": "fast"}},
        "sidecar",
        {
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "11Gi"}},
                        "storageClassName": "fast",
                    }
                }
            }
        },
        "kvcommons",
    ),
]


@pytest.mark.parametrize(("where", "placement", "source", "folder"), SOURCES)
def test_a_disk_is_a_volume_with_a_folder_of_the_nodes_own(
    where: dict[str, Any], placement: str, source: dict[str, Any], folder: str
) -> None:
    """The init container makes the folder in the volume; the daemon sees that folder alone, and is told of it."""
    spec = pod_of(pool(disk(**where), placement=placement))
    volume = next(one for one in spec["volumes"] if one["name"] == "kvcommons-disk-0")
    assert volume == {"name": "kvcommons-disk-0", **source}
    prepare, node = container(spec, "prepare"), container(spec, "cache-node")
    assert f"/var/lib/kvcommons-disks/0/{folder}=spec.tiers.secondary[0]" in prepare["command"]
    (whole,) = [mount for mount in prepare["volumeMounts"] if mount["name"] == volume["name"]]
    (own,) = [mount for mount in node["volumeMounts"] if mount["name"] == volume["name"]]
    assert not {"subPath", "subPathExpr"} & set(whole)
    assert own.get("subPathExpr" if "$(" in folder else "subPath") == folder
    (tier,) = told(spec).node.tiers
    assert disk_of([tier])["paths"] == [own["mountPath"]] == [whole["mountPath"]]
    assert tier.capacity_bytes == 10 * GIB
    if "$(" in folder:  # Kubernetes puts the value of a variable of the container in its place
        assert "KVCOMMONS_NODE__KUBERNETES_NODE" in {one["name"] for one in prepare["env"]}


def test_several_disks_are_one_tier() -> None:
    """Each is a device of its own: another volume, another path, the same capacity."""
    spec = pod_of(pool(disk(path="/mnt/a"), disk(path="/mnt/b")))
    (tier,) = told(spec).node.tiers
    assert isinstance(tier, DiskTier)
    assert tier.paths == ("/var/lib/kvcommons-disks/0", "/var/lib/kvcommons-disks/1")
    paths = {one["hostPath"]["path"] for one in spec["volumes"] if "hostPath" in one}
    assert {"/mnt/a", "/mnt/b"} <= paths


def test_a_sidecars_pod_with_disks_needs_no_more_than_the_strictest_level() -> None:
    """Neither a directory of the node nor a container that is root comes with them; engines see none of them."""
    spec = pod_of(pool(disk(emptyDir={}), placement="sidecar"))
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert container(spec, "prepare")["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not [mount for mount in container(spec, "engine")["volumeMounts"] if "disk" in mount["name"]]


def test_the_pod_pays_for_what_the_node_remembers_of_its_disks() -> None:
    """Where each shard is stands in memory: a larger disk raises request and limit."""
    plain = container(pod_of(examples.pool()), "cache-node")["resources"]
    large = container(pod_of(pool({**disk(path="/d"), "capacity": "4Ti"})), "cache-node")["resources"]
    for kind in ("requests", "limits"):
        assert parse_quantity(large[kind]["memory"]) - parse_quantity(plain[kind]["memory"]) == GIB


def test_eviction_and_the_share_of_a_tenant_reach_the_node() -> None:
    """Both are settings of the node; what the pool does not say is the best policy, and no limit."""
    node = told(pod_of(examples.pool())).node
    assert (node.eviction, node.tenant_percent_max) == ("auto", 100)
    given = examples.pool(eviction={"policy": "cost"}, tenancy={"tenantPercentMax": 30})
    node = told(pod_of(given)).node
    assert (node.eviction, node.tenant_percent_max) == ("cost", 30)


def prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREPARE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_the_folder_is_made_and_kept(tmp_path: Path) -> None:
    """Made with its parents, for nobody but its owner and group; made again, what is in it stays."""
    folder = tmp_path / "llm.commons" / "node-1"
    for _ in range(2):
        assert prepare("", f"{folder}=spec.tiers.secondary[0]").returncode == 0
        (folder / "segments.kvc").touch()
    assert folder.stat().st_mode & 0o007 == 0


def test_a_folder_that_cannot_be_made_is_told_by_the_field_that_asks_for_it(tmp_path: Path) -> None:
    """One line with field, user, reason and remedy: it becomes the container's last words, and so a condition's."""
    (tmp_path / "file").touch()
    done = prepare("", f"{tmp_path}/file/folder=spec.tiers.secondary[1]")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("spec.tiers.secondary[1]: no folder for user ")
    assert "(Not a directory). Remedy: " in line
    assert len(line) < 200


def test_a_directory_that_is_not_there_is_told_with_its_remedy() -> None:
    """The kubelet's words name the directory; what to do about it stands behind them."""
    said = 'FailedMount: MountVolume.SetUp failed for volume "kvcommons-disk-0" : hostPath type check failed: /mnt/a is not a directory'
    found = trouble(examples.node_pod(0, "", ready=False, phase="Pending", warnings=(said,)))
    assert found is not None
    assert found.reason == "MountFailed"
    assert "Remedy: make /mnt/a on the node" in found.message


# What is said -------------------------------------------------------------------------------------------------------------


def status(*tiers: tuple[TierState, ...] | None, **more: Any) -> dict[str, Any]:
    """Of a pool with a disk, whose cache nodes say this of their tiers; None: does not answer."""
    wanted = pool(disk(path="/d"), **more)
    daemon_set = examples.named(plan_pool(wanted, examples.pool_world()).apply, "DaemonSet")
    mark = daemon_set["spec"]["template"]["metadata"]["annotations"][names.TEMPLATE_HASH]
    pods = tuple(examples.node_pod(number, mark) for number in range(len(tiers)))
    states = {
        pod.uid: examples.node_state(number, tiers=said)
        for number, (pod, said) in enumerate(zip(pods, tiers, strict=True))
        if said is not None
    }
    return dict(plan_pool(wanted, examples.pool_world(pods=pods, nodes=states)).status or {})


WELL = TierState("disk", "serving", capacity_bytes=10 * GIB, used_bytes=5 * GIB, used_percent=50)
ILL = TierState("disk", "degraded", "No space left on device", capacity_bytes=10 * GIB, used_percent=100)


@pytest.mark.parametrize(
    ("tiers", "verdict", "reason", "words"),
    [
        (((WELL,), (WELL,)), "True", "Serving", "disk on 2 cache nodes"),
        (((WELL,), (ILL,)), "False", "TierDegraded", "the disk of cache node node-1 is degraded: No space left"),
        (((WELL,), ()), "False", "TierMissing", "node-1"),
        ((None, None), "Unknown", "NoAnswer", "no cache node"),
    ],
)
def test_a_condition_says_how_the_tiers_are(tiers: tuple[Any, ...], verdict: str, reason: str, words: str) -> None:
    """True, False with the node and why, or not known."""
    found = examples.condition(status(*tiers), "TiersHealthy")
    assert (found["status"], found["reason"]) == (verdict, reason)
    assert words in found["message"]


def test_an_ill_tier_costs_hits_and_not_readiness() -> None:
    """The pool's Ready and Available are what they are with the tier well."""
    ill, well = status((WELL,), (ILL,)), status((WELL,), (WELL,))
    for kind in ("Ready", "Available", "Progressing"):
        assert examples.condition(ill, kind)["status"] == examples.condition(well, kind)["status"]


def test_the_status_counts_tiers_over_all_nodes() -> None:
    """Capacity, share and health of all that answer; a pool with memory alone has no condition and no entry."""
    (entry,) = status((WELL,), (ILL,), None)["tiers"]
    assert entry == {"type": "disk", "capacity": "20Gi", "serving": 1, "degraded": 1, "usedPercent": 75}
    plain = plan_pool(examples.pool(), examples.pool_world()).status or {}
    assert plain["tiers"] == []
    assert "TiersHealthy" not in {one["type"] for one in plain["conditions"]}


def test_what_a_node_says_of_its_tiers_is_read() -> None:
    """Name, health, why and sizes; what still waits to be written means that it is not flushed."""
    tier = {
        "name": "disk",
        "health": "degraded",
        "detail": "x" * 900,
        "counters": {"capacity_bytes": 9, "used_bytes": 3},
    }
    state = parse_stats({"node_id": "n", "tiers": [tier], "core": {"tier_write_waiting": 1}})
    assert state.tiers == (TierState("disk", "degraded", "x" * 200, 9, 3),)
    assert not state.flushed
    assert parse_stats({"core": {"tier_write_waiting": 0}}).flushed
    assert not parse_stats({"core": {"tier_write_in_flight_bytes": 4096}}).flushed


def test_a_disk_that_fills_up_is_news_now_and_then() -> None:
    """Its share moves in coarse steps: what it holds to the byte makes no plan."""
    first = with_shares(None, examples.node_state(0, tiers=(WELL,)))
    more = with_shares(first, examples.node_state(0, tiers=(WELL._replace(used_bytes=5 * GIB + 1),)))
    full = with_shares(more, examples.node_state(0, tiers=(WELL._replace(used_bytes=9 * GIB),)))
    assert node_shape(first) == node_shape(more)
    assert node_shape(full) != node_shape(more)
    assert full.tiers[0].used_percent == 90
