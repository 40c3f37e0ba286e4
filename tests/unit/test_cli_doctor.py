"""`kvcommons doctor` against an API server at the wire: each thing that can be wrong is found, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cli_kube import BASE, CRDS, FakeCluster, condition, definition, deployment, healthy, kubeconfig, pod, pool, serving
from kvcommons_cli import control, doctor, doctor_cluster, doctor_local, doctor_rules
from kvcommons_cli.findings import Finding, Level
from kvcommons_core.redis_server import free_port

Manifest = dict[str, Any]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with serving(healthy()) as found:
        yield found


def examined(cluster: FakeCluster, tmp_path: Path) -> list[Finding]:
    from kvcommons_cli.cluster_api import connect

    return doctor_cluster.examine(connect(str(kubeconfig(tmp_path, cluster.url))))


def bad(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.level in (Level.PROBLEM, Level.WARNING)]


def test_a_healthy_cluster_has_no_findings_but_good_ones(cluster: FakeCluster, tmp_path: Path) -> None:
    """Everything is looked at, and each line says what was found well."""
    found = examined(cluster, tmp_path)
    assert bad(found) == []
    told = " ".join(f"{one.about}: {one.message}" for one in found)
    for words in ("Kubernetes v1.31.2", "v1alpha1 is served", "operator-0 leads", "3 are ready and connected"):
        assert words in told


def crashing(reason: str, **more: Any) -> Manifest:
    return {"ready": False, "state": {"waiting": {"reason": reason, **more}}}


def broken_pods(cluster: FakeCluster) -> None:
    out = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    stuck = pod("stuck", "engine", "chat")
    stuck["status"]["conditions"].append(
        {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 Insufficient memory."}
    )
    cluster.lists["/api/v1/pods"] += [
        pod("looping", "engine", "chat", engine={**crashing("CrashLoopBackOff"), "lastState": out}),
        pod("pulling", "router", router=crashing("ImagePullBackOff", message="not found")),
        pod("secret", "router", router=crashing("CreateContainerConfigError", message='secret "salt" not found')),
        pod("tired", "engine", "chat", engine={"restartCount": 9}),
        stuck,
    ]


def perm(cluster: FakeCluster, level: str) -> None:
    cluster.objects["/api/v1/namespaces/chat"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = level


BREAKAGES: dict[str, tuple[Any, str, str, str]] = {
    "an old cluster": (
        lambda it: it.objects.update({"/version": {"major": "1", "minor": "28", "gitVersion": "v1.28.0"}}),
        "cluster",
        "v1.28.0",
        "upgrade it to 1.29",
    ),
    "no definition": (
        lambda it: it.objects.pop(f"{CRDS}/inferenceroles.kvcommons.io"),
        "inferenceroles.kvcommons.io",
        "not installed",
        "kubectl apply --server-side -k crds",
    ),
    "an old definition": (
        lambda it: it.objects.update({f"{CRDS}/kvcachepools.kvcommons.io": definition("kvcachepools", "v1alpha0")}),
        "kvcachepools.kvcommons.io",
        "serves v1alpha0",
        "crds",
    ),
    "no operator": (
        lambda it: it.lists["/api/v1/pods"].pop(),
        "operator",
        "no pod of it",
        "install the chart",
    ),
    "no leader": (
        lambda it: it.objects.pop("/apis/coordination.k8s.io/v1/namespaces/kvcommons-system/leases/kvcommons-operator"),
        "operator",
        "no leader",
        "logs",
    ),
    "a pool that is refused": (
        lambda it: it.lists.update(
            {f"{BASE}/kvcachepools": [pool("shared", condition("Accepted", "False", "NotBuiltYet", "leave it out"))]}
        ),
        "KVCachePool kv/shared",
        "Accepted does not hold: NotBuiltYet: leave it out",
        "change the spec",
    ),
    "an index that is behind": (
        lambda it: it.lists.update(
            {
                f"{BASE}/kvcachepools": [
                    pool(
                        "shared",
                        condition("Ready", "False", "IndexBehind"),
                        condition("IndexConsistent", "Unknown", "NotMeasured"),
                    )
                ]
            }
        ),
        "KVCachePool kv/shared",
        "IndexConsistent is not known",
        "nodes tell the index again",
    ),
    "a disk that is full": (
        lambda it: it.lists.update(
            {
                f"{BASE}/kvcachepools": [
                    pool("shared", condition("Ready"), condition("TiersHealthy", "False", "TierDegraded", "no space"))
                ]
            }
        ),
        "KVCachePool kv/shared",
        "TiersHealthy does not hold: TierDegraded: no space",
        "see the disks",
    ),
    "a connector that does not load": (
        lambda it: it.lists.update(
            {f"{BASE}/inferencedeployments": [deployment("chat", condition("ConnectorLoaded", "False", "GlibcTooOld"))]}
        ),
        "InferenceDeployment chat/chat",
        "ConnectorLoaded does not hold: GlibcTooOld",
        "image that the payload fits",
    ),
    "a resource that nobody looks at": (
        lambda it: it.lists[f"{BASE}/inferencedeployments"][0]["status"].clear(),
        "InferenceDeployment chat/chat",
        "has not looked",
        "operator runs",
    ),
    "a change that is not reflected": (
        lambda it: it.lists[f"{BASE}/inferencedeployments"][0]["metadata"].update({"generation": 2}),
        "InferenceDeployment chat/chat",
        "not reflected in Ready",
        "operator's log",
    ),
    "a level that forbids hostPath": (
        lambda it: perm(it, "baseline"),
        "namespace chat",
        "enforces PodSecurity level baseline",
        "enforce=privileged",
    ),
    "a node without its index": (
        lambda it: it.node("node-1", index="disconnected"),
        "cache node kv/node-1",
        "redis://index:6379 disconnected",
        "NetworkPolicies",
    ),
    "a node that can't be asked": (
        lambda it: it.proxied.pop(("node-1", "/readyz")),
        "cluster",
        "1 of 3 cache nodes could not be asked",
        "conditions",
    ),
    "too few rights": (
        lambda it: it.denied.add("get pods/proxy"),
        "your rights",
        "may not get pods/proxy in all namespaces",
        "-n",
    ),
    "an operator without its rules": (
        lambda it: it.denied.add("patch daemonsets"),
        "operator's rights",
        "system:serviceaccount:kvcommons-system:default may not patch daemonsets.apps",
        "upgrade the chart",
    ),
    "a crash for want of memory": (
        broken_pods,
        "pod chat/looping",
        "CrashLoopBackOff (it ended by OOMKilled)",
        "memory",
    ),
    "an image that is not there": (broken_pods, "pod kv/pulling", "ImagePullBackOff: not found", "imagePullSecrets"),
    "a secret that is not there": (broken_pods, "pod kv/secret", 'secret "salt" not found', "make the Secret"),
    "many restarts": (broken_pods, "pod chat/tired", "restarted 9 times", "--previous"),
    "no room": (broken_pods, "pod chat/stuck", "Insufficient memory", "make room"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_wrong_is_found_with_what_to_do(name: str, cluster: FakeCluster, tmp_path: Path) -> None:
    """Each breakage gives a finding about the right thing, in words, with a remedy that can be followed."""
    breakage, about, message, remedy = BREAKAGES[name]
    breakage(cluster)
    found = [one for one in bad(examined(cluster, tmp_path)) if one.about == about and message in one.message]
    assert len(found) == 1, bad(examined(cluster, tmp_path))
    assert remedy in found[0].remedy


def test_ready_is_not_told_where_another_condition_says_why(cluster: FakeCluster, tmp_path: Path) -> None:
    """One cause is one line."""
    cluster.lists[f"{BASE}/kvcachepools"] = [
        pool(
            "shared", condition("ResolvedRefs", "False", "SecretMissing", "make it"), condition("Ready", "False", "No")
        )
    ]
    (found,) = bad(examined(cluster, tmp_path))
    assert "SecretMissing" in found.message


def test_what_follows_from_a_cause_is_not_told_beside_it(cluster: FakeCluster, tmp_path: Path) -> None:
    """A missing Secret, the pods that wait for it and what nobody can know meanwhile are two lines: the cause, and the pods in one."""
    waits = crashing("CreateContainerConfigError", message='secret "redis" not found')
    cluster.lists["/api/v1/pods"] += [pod(f"engine-{n}", "engine", "chat", engine=waits) for n in range(4)]
    cluster.lists[f"{BASE}/kvcachepools"] = [
        pool(
            "shared",
            condition("ResolvedRefs", "False", "SecretNotFound", "create it"),
            condition("Available", "False", "NoNodeReady"),
            condition("Ready", "False", "SecretNotFound"),
            condition("IndexConsistent", "Unknown", "NoAnswer"),
        )
    ]
    told = [one.message for one in bad(examined(cluster, tmp_path))]
    assert told == [
        "ResolvedRefs does not hold: SecretNotFound: create it",
        'engine: CreateContainerConfigError: secret "redis" not found',
    ]
    assert any(one.about == "pod chat/engine-0 and 3 more like it" for one in examined(cluster, tmp_path))


def test_a_node_that_left_its_index_before_a_restart_is_no_problem(cluster: FakeCluster, tmp_path: Path) -> None:
    """While nodes roll one is out of the index on purpose."""
    cluster.node("node-1", index="disconnected", held=True)
    found = examined(cluster, tmp_path)
    assert bad(found) == []
    assert any(one.about == "cache node kv/node-1" and "about to be restarted" in one.remedy for one in found)


def test_who_may_see_little_is_told_what_was_not_looked_at(cluster: FakeCluster, tmp_path: Path) -> None:
    """Without rights to definitions, pods and leases the rest is looked at all the same."""
    for plural in ("kvcachepools", "inferencedeployments", "inferenceroles"):
        cluster.refused[f"{CRDS}/{plural}.kvcommons.io"] = 403
    cluster.refused["/api/v1/pods"] = 403
    cluster.objects[BASE] = {"resources": [{"name": "kvcachepools"}, {"name": "inferencedeployments"}]}
    found = examined(cluster, tmp_path)
    told = [f"{one.about}: {one.message}" for one in found]
    assert "kvcachepools.kvcommons.io: v1alpha1 is served" in told
    assert "inferenceroles.kvcommons.io: this kind is not installed" in told
    assert any("it was not looked for" in one for one in told)
    assert "KVCachePool kv/shared: ready" in told


@pytest.mark.parametrize(
    ("renewed", "level"), [("2026-01-01T00:00:00Z", Level.OK), ("2025-12-31T23:00:00Z", Level.PROBLEM), ("", "warning")]
)
def test_a_leader_that_was_not_heard_of_is_told(renewed: str, level: str) -> None:
    """A Lease whose holder is long silent is no leader."""
    lease = {"spec": {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": renewed}}
    assert doctor_rules.leader("ns", lease, datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)).level == level


def test_the_command_ends_with_one_where_there_is_a_problem(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For people each problem has a line and a remedy, and a sum at the end; for machines there is an object."""
    monkeypatch.setattr(control, "URL_DEFAULT", f"http://127.0.0.1:{free_port()}")
    words = ["--kubeconfig", str(kubeconfig(tmp_path, cluster.url))]
    assert doctor.main(words) == 0
    assert capsys.readouterr().out.rstrip().endswith("Nothing is wrong.")
    perm(cluster, "restricted")
    assert doctor.main(words) == 1
    text = capsys.readouterr().out
    assert "[FAIL] namespace chat" in text
    assert "       -> kubectl label namespace chat" in text
    assert text.rstrip().endswith("1 problem.")
    assert doctor.main([*words, "-o", "json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [one["about"] for one in told["findings"] if one["level"] == "problem"] == ["namespace chat"]


def test_a_cluster_that_is_away_is_a_problem_and_this_machine_is_looked_at_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A doctor never ends in a traceback."""
    away = kubeconfig(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert doctor.main(["--kubeconfig", str(away), "--url", f"http://127.0.0.1:{free_port()}"]) == 1
    text = capsys.readouterr().out
    assert "[ok  ] native module" in text
    assert "does not answer" in text


def test_a_machine_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a node and a socket these are notes, not problems; a path that is no socket is one."""
    monkeypatch.setenv("KVCOMMONS_SOCKET", str(tmp_path / "n.sock"))
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(control, "URL_DEFAULT", url)
    found = {one.about: one for one in doctor_local.examine(url, None)}
    assert found["node"].level == Level.NOTE
    assert "start one" in found["node"].remedy
    assert found["socket"].level == Level.NOTE
    (tmp_path / "n.sock").write_text("")
    found = {one.about: one for one in doctor_local.examine(url, None)}
    assert (found["socket"].level, found["native module"].level) == (Level.PROBLEM, Level.OK)


def test_a_node_that_was_named_and_does_not_answer_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    """Who gives an address says that a node is there: the status tells a script that it is not."""
    url = f"http://127.0.0.1:{free_port()}"
    assert doctor.main(["--local", "--url", url]) == 1
    assert f"none answers at {url}" in capsys.readouterr().out
