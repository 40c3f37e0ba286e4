"""Engines: command, model, probes, overrides, and what a newer operator may not change."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import operator_cases as cases
import operator_examples as examples
import pytest
from kvcommons_connector.config import parse_config
from kvcommons_operator.observed import Manifest
from kvcommons_operator.plan import plan_deployment


def children(ifd: Manifest, **more: Any) -> tuple[Manifest, ...]:
    return plan_deployment(ifd, examples.world(**more)).apply


def workload(ifd: Manifest, **more: Any) -> Manifest:
    return examples.named(children(ifd, **more), "Deployment", "chat-engine")


def engine(ifd: Manifest, **more: Any) -> dict[str, Any]:
    (found,) = workload(ifd, **more)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def value_of(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_the_engine_is_started_behind_the_launcher_with_the_connector() -> None:
    """The command is the launcher's, with the engine's own after it and the connector's configuration at its end."""
    command = engine(examples.deployment())["command"]
    assert command[:3] == ["python3", "/kvcommons/launch.py", "--"]
    assert command[3:6] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert value_of(command, "--model") == "/model/smol"
    assert value_of(command, "--served-model-name") == "smol"
    config = json.loads(value_of(command, "--kv-transfer-config"))
    assert config["kv_load_failure_policy"] == "recompute"
    assert config["kv_connector_module_path"] == "kvcommons_connector.vllm"


def test_the_connector_takes_the_settings_that_it_is_given() -> None:
    """The extra configuration holds only keys that the connector knows; the chunk's size is the pool's."""
    command = engine(examples.deployment(), pool=examples.pool(chunkTokens=512))["command"]
    extra = json.loads(value_of(command, "--kv-transfer-config"))["kv_connector_extra_config"]
    assert parse_config(extra).chunk_tokens == 512


def test_without_a_pool_there_is_no_connector() -> None:
    """An engine of its own is started as its makers start it, with no payload and no init container."""
    ifd = examples.deployment(poolRef=None)
    spec = workload(ifd, pool=None)["spec"]["template"]["spec"]
    (found,) = spec["containers"]
    assert found["command"][0:2] == ["python3", "-m"]
    assert "--kv-transfer-config" not in found["command"]
    assert "initContainers" not in spec


def test_a_fail_closed_pool_starts_no_engine_without_the_commons() -> None:
    """With failureMode FailClosed the launcher is strict."""
    command = engine(examples.deployment(), pool=examples.pool(failureMode="FailClosed"))["command"]
    assert command[:4] == ["python3", "/kvcommons/launch.py", "--strict", "--"]


def test_a_users_command_and_arguments_are_kept_and_the_operators_own_come_last() -> None:
    """The last word on model, name and port is the operator's: an engine that listens elsewhere would serve nobody."""
    ifd = cases.deployments()["everything"][0]
    command = engine(ifd)["command"]
    assert command[3:6] == ["/opt/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert command.index("--max-model-len=4096") < command.index("--model")
    assert value_of(command, "--data-parallel-size") == "2"
    template = workload(ifd)["spec"]["template"]
    assert template["metadata"]["annotations"]["kvcommons.io/data-parallel-size"] == "2"
    (check,) = [one for one in template["spec"]["initContainers"] if one["name"] == "check"]
    assert check["command"][-3:] == ["--check", "--python", "/opt/venv/bin/python"]


@pytest.mark.parametrize(
    ("source", "path", "volume"),
    [
        ({"pvc": {"claimName": "c"}}, "/model", {"persistentVolumeClaim": {"claimName": "c", "readOnly": True}}),
        ({"pvc": {"claimName": "c", "path": "a/b"}}, "/model/a/b", None),
        ({"image": {"reference": "i:1"}}, "/model", {"image": {"reference": "i:1"}}),
        ({"local": {"path": "/m"}}, "/m", {}),
    ],
)
def test_the_model_is_mounted_for_reading(source: dict[str, Any], path: str, volume: dict[str, Any] | None) -> None:
    """Each source becomes a volume that nobody writes, and the path that the engine is told."""
    ifd = examples.deployment()
    ifd["spec"]["model"]["source"] = source
    spec = workload(ifd)["spec"]["template"]["spec"]
    assert value_of(spec["containers"][0]["command"], "--model") == path
    found = [
        {k: v for k, v in one.items() if k != "name"} for one in spec["volumes"] if one["name"] == "kvcommons-model"
    ]
    assert volume is None or found == ([volume] if volume else [])


def test_a_model_of_a_hub_is_loaded_at_its_commit_with_the_token_of_a_secret() -> None:
    """The engine gets the repository, the commit and a reference to the token; the token itself is nowhere."""
    found = engine(cases.deployments()["hub"][0])
    assert value_of(found["command"], "--model") == "Qwen/Qwen3"
    assert value_of(found["command"], "--revision") == cases.COMMIT
    (token,) = [one for one in found["env"] if one["name"] == "HF_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


def test_overrides_merge_by_name() -> None:
    """A variable of the template replaces its namesake, volumes and mounts are added, and the operator's own stay."""
    spec = workload(cases.deployments()["everything"][0])["spec"]["template"]["spec"]
    (found,) = spec["containers"]
    env = {one["name"]: one.get("value") for one in found["env"]}
    assert (env["OMP_NUM_THREADS"], env["HOME"]) == ("2", "/scratch")
    assert env["KVCOMMONS_SOCKET"] == "/run/kvcommons/node.sock"
    assert len(env) == len(found["env"])
    assert {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}} in spec["volumes"]
    assert {mount["mountPath"] for mount in found["volumeMounts"]} >= {"/scratch", "/kvcommons", "/dev/shm"}
    assert spec["nodeSelector"] == {"gpu": "h200"}
    counted = spec["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
    assert counted["kvcommons.io/role"] == "engine"


def test_engines_have_shared_memory_for_their_workers() -> None:
    """/dev/shm is memory with a limit, of 2Gi where nothing is said; a mount of the user's own is in its place."""

    def shared(more: dict[str, Any]) -> tuple[Any, Any]:
        spec = workload(examples.deployment(**more))["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {one["mountPath"]: one["name"] for one in spec["containers"][0]["volumeMounts"]}
        return volumes.get("kvcommons-shm", {}).get("emptyDir"), mounts["/dev/shm"]

    assert shared({}) == ({"sizeLimit": "2Gi", "medium": "Memory"}, "kvcommons-shm")
    assert shared({"engine": {"sharedMemory": "8Gi"}})[0] == {"sizeLimit": "8Gi", "medium": "Memory"}
    own = {
        "volumes": [{"name": "mine", "emptyDir": {"medium": "Memory"}}],
        "volumeMounts": [{"name": "mine", "mountPath": "/dev/shm"}],
    }
    assert shared({"podTemplate": own}) == (None, "mine")


def test_the_container_that_tries_the_connector_sees_what_the_engine_sees() -> None:
    """Volumes and variables of the template are the check's as well: a Python on a volume is tried where it is."""
    spec = workload(cases.deployments()["everything"][0])["spec"]["template"]["spec"]
    (check,) = [one for one in spec["initContainers"] if one["name"] == "check"]
    assert check["image"] == spec["containers"][0]["image"]
    assert {"name": "scratch", "mountPath": "/scratch"} in check["volumeMounts"]
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in check["env"]


def test_probes_are_ours_where_the_user_is_silent() -> None:
    """A path or a number of the user's is taken; the rest are values for large models."""
    found = engine(cases.deployments()["everything"][0])
    assert found["startupProbe"]["failureThreshold"] == 10
    assert found["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert found["livenessProbe"]["httpGet"]["path"] == "/health"


def test_an_engine_that_goes_finishes_its_answers_first() -> None:
    """The hook before the end waits for what is under way, for no longer than drainSeconds, within the pod's time."""
    ifd = examples.deployment(drainSeconds=40)
    found = engine(ifd)
    command = found["lifecycle"]["preStop"]["exec"]["command"]
    assert command[-2:] == ["8000", "40"]
    compile(command[2], "preStop", "exec")
    assert workload(ifd)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 40


def test_the_drain_reads_the_engines_own_metrics() -> None:
    """Running and waiting requests are found in vLLM's text, whatever its labels."""
    script = engine(examples.deployment())["lifecycle"]["preStop"]["exec"]["command"][2]
    (pattern,) = re.findall(r're\.findall\(r"(.*?)", text\)', script)
    text = 'vllm:num_requests_running{engine="0",model_name="m"} 2.0\nvllm:num_requests_waiting 1\nother 9\n'
    assert re.findall(pattern, text) == ["2.0", "1"]


def test_a_newer_operator_changes_no_engine_pod() -> None:
    """With the same wish, another version's images and another builder's template leave the pods as they were made."""
    ifd = examples.deployment()
    made = workload(ifd)
    newer = replace(examples.INSTALL, version="2.0.0", node_image="kvcommons-node:2.0.0", router_image="r:2")
    again = workload(ifd, install=newer, children=examples.live([made]))
    assert again == made
    router = examples.named(children(ifd, install=newer), "Deployment", "chat-router")
    assert router["spec"]["template"]["spec"]["containers"][0]["image"] == "r:2"


def test_a_newer_operator_rolls_engines_where_the_resource_allows_it() -> None:
    """With upgradePolicy Roll, and with any change of the user's own, the newer operator's template is in force."""
    newer = replace(examples.INSTALL, node_image="kvcommons-node:2.0.0")

    def payload_image(ifd: Manifest, live: Manifest) -> str:
        spec = workload(ifd, install=newer, children=examples.live([live]))["spec"]["template"]["spec"]
        return str(spec["initContainers"][0]["image"])

    roll = examples.deployment(engine={"upgradePolicy": "Roll"})
    assert payload_image(roll, workload(roll)) == "kvcommons-node:2.0.0"
    made = workload(examples.deployment())
    assert payload_image(examples.deployment(), made) == "kvcommons-node:1.0.0"
    assert payload_image(examples.deployment(engine={"args": ["--x"]}), made) == "kvcommons-node:2.0.0"


def test_allowing_a_roll_is_no_change_by_itself() -> None:
    """upgradePolicy is no part of what the user asks of the pods: to set it restarts nothing while the version is the same."""
    made = workload(examples.deployment())
    roll = workload(examples.deployment(engine={"upgradePolicy": "Roll"}), children=examples.live([made]))
    assert roll["spec"]["template"] == made["spec"]["template"]


def test_drift_of_a_pinned_template_is_put_back() -> None:
    """What somebody changed in the live template is not taken for the wish: the template that was made is applied again."""
    ifd = examples.deployment()
    made = workload(ifd)
    live = examples.live([made])
    (changed,) = live.values()
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"
    assert workload(ifd, children=live) == made


def test_a_broken_annotation_is_made_anew() -> None:
    """Where the annotation can't be read, the template is built as for the first time."""
    made = workload(examples.deployment())
    for text in ("", "{", "[]", "{}"):
        live = examples.live([made])
        (one,) = live.values()
        one["metadata"]["annotations"]["kvcommons.io/pinned"] = text
        assert workload(examples.deployment(), children=live) == made


def test_a_pool_that_changes_rolls_only_engines_that_carry_it() -> None:
    """The size of the memory tier is in a sidecar's pod, and not in that of an engine beside a DaemonSet."""
    for placement, rolls in (("sidecar", True), ("perNode", False)):
        before = workload(examples.deployment(), pool=examples.pool(placement=placement))
        larger = examples.pool(placement=placement, tiers={"memory": {"capacity": "9Gi"}})
        after = workload(examples.deployment(), pool=larger, children=examples.live([before]))
        assert (after["spec"]["template"] != before["spec"]["template"]) is rolls


def test_roles_have_workloads_of_their_own() -> None:
    """Prefill and decode differ in replicas, arguments and variables; each selects its own pods alone."""
    made = children(cases.roles_example())
    prefill = examples.named(made, "Deployment", "chat-prefill")
    decode = examples.named(made, "Deployment", "chat-decode")
    assert (prefill["spec"]["replicas"], decode["spec"]["replicas"]) == (1, 3)
    assert "--x" in decode["spec"]["template"]["spec"]["containers"][0]["command"]
    assert prefill["spec"]["selector"] != decode["spec"]["selector"]


def test_names_of_an_engine_over_several_nodes_leave_room_for_its_pods() -> None:
    """A LeaderWorkerSet of a long name is shortened so far that its StatefulSets, one a replica, may label their pods; never two alike."""
    made = set()
    for name in ("a" * 40, "a" * 63, "a" * 62 + "b"):
        ifd = examples.deployment(name, poolRef=None, engine={"tensorParallelSize": 4, "nodesPerReplica": 2})
        found = examples.named(children(ifd, pool=None, apis=frozenset(examples.OPTIONAL)), "LeaderWorkerSet")
        made.add(found["metadata"]["name"])
        assert len(f"{found['metadata']['name']}-99999-0123456789") <= 63
        assert found["metadata"]["name"].endswith("-engine")
    assert len(made) == 3


def test_an_engine_over_several_nodes_is_a_leader_and_workers() -> None:
    """The leader serves; workers carry no probe and no label that the router would send to."""
    ifd, pool = cases.deployments()["spread over nodes"]
    made = children(ifd, pool=pool, apis=frozenset(examples.OPTIONAL))
    group = examples.named(made, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    leader, worker = group["leaderTemplate"], group["workerTemplate"]
    assert leader["metadata"]["labels"]["app.kubernetes.io/component"] == "engine"
    assert worker["metadata"]["labels"]["app.kubernetes.io/component"] == "engine-worker"
    assert worker["spec"]["containers"][0]["command"][-1] == "--headless"
    assert not any("Probe" in key for key in worker["spec"]["containers"][0])
    assert "--headless" not in leader["spec"]["containers"][0]["command"]
