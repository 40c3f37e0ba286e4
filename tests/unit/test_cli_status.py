"""`kvcommons status` against an API server at the wire: what a person sees, what a machine reads, and every refusal in words."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cli_kube import BASE, FakeCluster, condition, deployment, healthy, kubeconfig, pod, pool, serving
from kvcommons_cli import cluster_api, status, status_view, tables
from kvcommons_core.redis_server import free_port


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with serving(healthy()) as found:
        yield found


@pytest.fixture
def words(cluster: FakeCluster, tmp_path: Path) -> list[str]:
    return ["--kubeconfig", str(kubeconfig(tmp_path, cluster.url))]


def columns(text: str, first: str) -> dict[str, str]:
    """The first row of a table, by heading."""
    lines = text.splitlines()
    number = next(index for index, line in enumerate(lines) if line.startswith(first + " "))
    headings = [part for part in lines[number].split("  ") if part]
    starts = [lines[number].index(heading) for heading in headings]
    row = lines[number + 1]
    ends = [*starts[1:], None]
    return {heading.strip(): row[start:end].strip() for heading, start, end in zip(headings, starts, ends, strict=True)}


def test_pools_nodes_deployments_and_replicas_are_shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One look says what there is, whether it serves, how full it is and how much of what engines ask for is there."""
    assert status.main(words) == 0
    text = capsys.readouterr().out
    pool_row = columns(text, "POOL")
    assert pool_row["POOL"] == "kv/shared"
    assert (pool_row["READY"], pool_row["NODES"], pool_row["CONSISTENT"]) == ("True", "3/3", "True")
    assert (pool_row["MEMORY"], pool_row["USED"], pool_row["HITS"]) == ("3.0 KiB", "50 %", "75 %")
    node = columns(text, "CACHE NODE")
    assert (node["CACHE NODE"], node["ON"], node["CHUNKS"], node["INDEX"]) == (
        "kv/node-0",
        "machine-1",
        "7",
        "connected",
    )
    served = columns(text, "DEPLOYMENT")
    assert (served["MODEL"], served["POOL"], served["SERVING"], served["SHARING"]) == (
        "smollm2",
        "kv/shared",
        "2/2",
        "2/2",
    )
    assert columns(text, "REPLICA")["STATE"] == "Running"
    assert "doctor" not in text


def test_what_is_behind_the_memory_is_shown(
    cluster: FakeCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A pool's disks: how large, how full, and on how many nodes they are not well."""
    tiers = [{"type": "disk", "capacity": "20Gi", "usedPercent": 40, "serving": 1, "degraded": 1}]
    for told, shown in ((tiers, "disk 40 % of 20Gi (1 not well)"), ([], "-")):
        cluster.lists[f"{BASE}/kvcachepools"] = [pool("shared", tiers=told)]
        assert status.main(words) == 0
        assert columns(capsys.readouterr().out, "POOL")["BEHIND"] == shown


def test_one_node_shows_its_tiers() -> None:
    """Of this machine's node each tier has a line: health, size, share, and why it is not well."""
    disk = {
        "name": "disk",
        "health": "degraded",
        "detail": "no space",
        "counters": {"capacity_bytes": 2048, "used_bytes": 512, "shards": 7},
    }
    row = columns(status_view.local_tables({"tiers": [disk]}, {"ready": True}), "BEHIND MEMORY")
    assert row == {
        "BEHIND MEMORY": "disk",
        "HEALTH": "degraded",
        "SIZE": "2.0 KiB",
        "USED": "25 %",
        "SHARDS": "7",
        "WHY": "no space",
    }


def test_an_index_is_external_only_where_the_pool_says_so(
    cluster: FakeCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A pool whose index is not counted yet has none to show; an external one has no pods to count, and is reached or not."""
    apart = condition("IndexConsistent", "False", "NodesNotInIndex")
    for made, spec, shown in (
        (pool("shared"), {}, "-"),
        (pool("shared", index={"replicas": 1, "readyReplicas": 0}), {}, "0/1"),
        (pool("shared", index={"replicas": 0}), {"external": {"url": "redis://r"}}, "external"),
        (pool("shared", apart), {"external": {"url": "redis://r"}}, "external, not reached"),
    ):
        cluster.lists[f"{BASE}/kvcachepools"] = [{**made, "spec": {**made["spec"], "index": spec}}]
        status.main(words)
        assert columns(capsys.readouterr().out, "POOL")["INDEX"] == shown


def test_the_same_is_there_for_machines(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """-o json gives one object with everything that the tables show, lists longer than a page included."""
    assert status.main([*words, "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["pool"] for one in told["pools"]] == ["kv/shared"]
    assert [one["cache node"] for one in told["nodes"]] == ["kv/node-0", "kv/node-1", "kv/node-2"]
    assert told["nodes"][0]["report"]["hit_chunks"] == 30
    assert len(told["replicas"]) == 2
    assert told["problems"] == []


def test_without_the_right_to_the_proxy_the_status_fields_are_shown(
    cluster: FakeCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nodes can't be asked, what the operator wrote down is shown, and it is said that they could not."""
    cluster.proxied.clear()
    known: dict[str, Any] = {
        "memory": "96Gi",
        "memoryUsedPercent": 41,
        "hitPercent": 63,
        "nodes": {"desired": 3, "ready": 2},
    }
    cluster.lists[f"{BASE}/kvcachepools"] = [pool("shared", condition("Ready", "False", "NodesNotReady"), **known)]
    assert status.main(words) == 0
    text = capsys.readouterr().out
    row = columns(text, "POOL")
    assert (row["READY"], row["NODES"], row["MEMORY"], row["USED"], row["HITS"]) == (
        "False: NodesNotReady",
        "2/3",
        "96Gi",
        "41 %",
        "63 %",
    )
    assert "note: 3 of 3 cache nodes could not be asked" in text
    assert "`kvcommons doctor` says why" in text


def test_a_sidecar_s_cache_node_is_found_in_its_engine_s_pod(
    cluster: FakeCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With placement sidecar the cache node is a container of the engine's pod: the pod is a replica and a node."""
    cluster.lists["/api/v1/pods"] = [pod("chat-0", "engine", "chat", engine={}, cache_node={"restartCount": 4})]
    cluster.node("chat-0")
    assert status.main(words) == 0
    text = capsys.readouterr().out
    assert columns(text, "CACHE NODE")["CACHE NODE"] == "chat/chat-0"
    assert columns(text, "REPLICA")["RESTARTS"] == "4"


def test_long_tables_show_first_what_is_not_well(
    cluster: FakeCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of hundreds of replicas a person sees those that are not ready, and how many more there are."""
    engines = [pod(f"chat-{number:03}", "engine", "chat") for number in range(120)]
    engines[100] = pod("chat-100", "engine", "chat", engine={"ready": False})
    cluster.lists["/api/v1/pods"] = engines
    assert status.main(words) == 0
    text = capsys.readouterr().out
    assert columns(text, "REPLICA")["REPLICA"] == "chat/chat-100"
    assert "(70 more, none of them not ready; -o json lists all)" in text
    assert status.main([*words, "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["replicas"]) == 120


def test_one_namespace_is_asked_for_alone(
    cluster: FakeCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """-n asks for nothing beyond it: somebody with rights in one namespace can look at it."""
    inside = f"{BASE}/namespaces/chat"
    cluster.lists[f"{inside}/kvcachepools"] = []
    cluster.lists[f"{inside}/inferencedeployments"] = [deployment("mine")]
    cluster.lists["/api/v1/namespaces/chat/pods"] = []
    assert status.main([*words, "-n", "chat"]) == 0
    text = capsys.readouterr().out
    assert "no KVCachePool" in text
    assert columns(text, "DEPLOYMENT")["DEPLOYMENT"] == "chat/mine"
    assert {path for _, path in cluster.asked} == {
        f"{inside}/kvcachepools",
        f"{inside}/inferencedeployments",
        "/api/v1/namespaces/chat/pods",
    }


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        ({f"{BASE}/kvcachepools": 404}, "kvcommons is not installed there"),
        ({f"{BASE}/kvcachepools": 403}, "ask for the right to do that"),
        ({f"{BASE}/kvcachepools": 500}, "status 500: scripted"),
    ],
)
def test_a_refusal_is_one_line_with_what_to_do(
    refused: dict[str, int],
    told: str,
    cluster: FakeCluster,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Status 1 and one line on standard error; never a traceback."""
    cluster.refused = refused
    assert status.main(words) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_pods_that_may_not_be_listed_cost_only_their_tables(
    cluster: FakeCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Resources are shown without them, and what is missing is said."""
    cluster.refused = {"/api/v1/pods": 403}
    assert status.main(words) == 0
    text = capsys.readouterr().out
    assert columns(text, "POOL")["POOL"] == "kv/shared"
    assert "note: pods are not shown" in text


def test_an_api_server_that_is_away_or_wants_other_credentials_is_told(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The address is named, and what could be the matter."""
    away = kubeconfig(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert status.main(["--kubeconfig", str(away)]) == 1
    assert "does not answer" in capsys.readouterr().err
    stranger = kubeconfig(tmp_path, cluster.url, token="another")
    assert status.main(["--kubeconfig", str(stranger)]) == 1
    assert "log in to the cluster again" in capsys.readouterr().err


def test_a_kubeconfig_that_can_t_be_used_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file and an unknown context are one line each."""
    assert status.main(["--kubeconfig", str(tmp_path / "none")]) == 1
    assert "no kubeconfig can be used" in capsys.readouterr().err
    file = kubeconfig(tmp_path, "http://127.0.0.1:1")
    assert status.main(["--kubeconfig", str(file), "--context", "nope"]) == 1
    assert "nope" in capsys.readouterr().err


def test_without_the_client_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who installed only a node learns what to install to look at a cluster."""
    found = builtins.__import__

    def without(name: str, *arguments: object, **options: object) -> object:
        if name.split(".")[0] == "kubernetes":
            raise ImportError("no kubernetes here")
        return found(name, *arguments, **options)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(builtins, "__import__", without)
    assert status.main(["--kubeconfig", str(kubeconfig(tmp_path, "http://127.0.0.1:1"))]) == 1
    assert "pip install 'kvcommons[operator]'" in capsys.readouterr().err


def test_a_cluster_is_known_by_any_of_the_usual_ways(tmp_path: Path) -> None:
    """Options, KUBECONFIG, a pod's environment or the home's kubeconfig; else this machine's node is meant."""
    home = {"HOME": str(tmp_path)}
    assert not cluster_api.configured("", "", home)
    assert cluster_api.configured("file", "", home)
    assert cluster_api.configured("", "context", home)
    assert cluster_api.configured("", "", {**home, "KUBECONFIG": "x"})
    assert cluster_api.configured("", "", {**home, "KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    assert cluster_api.configured("", "", home)


@pytest.mark.parametrize(
    ("stamp", "shown"),
    [("2026-01-01T00:00:00Z", "3d"), ("2026-01-03T23:59:30Z", "30s"), ("2026-01-03T22:00:00+00:00", "2h"), ("?", "")],
)
def test_ages_are_short(stamp: str, shown: str) -> None:
    """One number and one unit; nothing where the time is not known."""
    assert tables.age(stamp, datetime(2026, 1, 4, tzinfo=UTC)) == shown
