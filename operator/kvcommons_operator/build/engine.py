"""Engines: a Deployment for each role, or a LeaderWorkerSet where one replica is spread over nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.common import FailureMode
from kvcommons_operator.api.deployment import Probe, count_or_share
from kvcommons_operator.build import engine_command, model, node, payload, pods
from kvcommons_operator.build.deployment import Deployment, Group, template_overrides
from kvcommons_operator.build.merge import merged
from kvcommons_operator.observed import Manifest

ENGINE_CONTAINER: Final = "engine"
HOME_VOLUME: Final = "kvcommons-home"
HOME_PATH: Final = "/var/kvcommons-home"
TMP_VOLUME: Final = "kvcommons-tmp"
SHM_VOLUME: Final = "kvcommons-shm"
SHM_PATH: Final = "/dev/shm"
SHM_SIZE: Final = "2Gi"
"""What several workers of one engine pass each other, with room to spare; a runtime's own 64Mi is too little even for two."""
PROGRESS_SECONDS_MAX: Final = 3600
"""How long a change may take until it counts as stuck: models are large."""
GRACE_SECONDS: Final = 15
"""After the last answer: for the process to end."""
REVISIONS_MAX: Final = 3
STARTUP_FAILURES: Final = 360
"""Times 10 s: an hour to load a model."""
# Waits until nothing is under way, or for argv[2] seconds. Routers have stopped sending by then. A busy engine may not answer in time:
# only one that does not answer again and again is taken for dead.
DRAIN: Final = """\
import http.client, re, sys, time, urllib.request
end, idle, lost = time.monotonic() + float(sys.argv[2]), 0, 0
time.sleep(min(2.0, float(sys.argv[2])))
while time.monotonic() < end and idle < 2 and lost < 5:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=2) as answer:
            text = answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        lost += 1
        time.sleep(0.5)
        continue
    lost = 0
    busy = sum(float(n) for n in re.findall(r"(?m)^vllm:num_requests_(?:running|waiting)(?:{[^}]*})? ([0-9.e+]+)", text))
    idle = idle + 1 if busy == 0 else 0
    time.sleep(0.5)
"""


def pod_template(deployment: Deployment, group: Group, *, rank_words: tuple[str, ...] = ()) -> Manifest:
    """The template of a group's pods."""
    own = group.template
    selector = deployment.group_labels(group)
    annotations = dict(own.metadata.annotations)
    if deployment.spec.engine.data_parallel_size > 1:
        annotations[names.DATA_PARALLEL] = str(deployment.spec.engine.data_parallel_size)
    if deployment.spec.model.revision is not None:
        annotations[f"{names.GROUP}/model-revision"] = deployment.spec.model.revision
    labels = {**own.metadata.labels, **deployment.owner.labels(names.ENGINE, deployment.pool_labels()), **selector}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector},
    }
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": deployment.spec.drain_seconds + GRACE_SECONDS,
        "securityContext": _pod_security(deployment, group),
        "topologySpreadConstraints": [spread],
        "containers": [_engine_container(deployment, group, rank_words)],
        "volumes": _volumes(deployment, group),
        **pods.pull_secrets(deployment.install, [ref.name for ref in own.image_pull_secrets]),
        **pods.overrides(own),
        **template_overrides(own, selector),
    }
    if deployment.pool is not None:
        spec["initContainers"] = _init_containers(deployment, group)
    metadata: dict[str, Any] = {"labels": labels}
    return {"metadata": metadata | ({"annotations": annotations} if annotations else {}), "spec": spec}


def workload(deployment: Deployment, group: Group, template: Manifest) -> Manifest:
    """The Deployment of a group, without `replicas`: who writes those is decided elsewhere."""
    rollout = deployment.spec.rollout
    spec = {
        "selector": {"matchLabels": deployment.group_labels(group)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {
                "maxSurge": count_or_share(rollout.max_surge),
                "maxUnavailable": count_or_share(rollout.max_unavailable),
            },
        },
        "progressDeadlineSeconds": PROGRESS_SECONDS_MAX,
        "revisionHistoryLimit": REVISIONS_MAX,
        "template": template,
    }
    child = deployment.engine_child(group.role, _workload_labels(deployment, group))
    return child.manifest("apps/v1", "Deployment", {"spec": spec})


def leader_worker_set(deployment: Deployment, group: Group) -> Manifest:
    """Replicas that are spread over nodes. The first pod of each serves; the others follow it."""
    leader_words = (
        "--nnodes=$(LWS_GROUP_SIZE)",
        "--node-rank=$(LWS_WORKER_INDEX)",
        "--master-addr=$(LWS_LEADER_ADDRESS)",
    )
    leader = pod_template(deployment, group, rank_words=leader_words)
    worker = pod_template(deployment, group, rank_words=(*leader_words, "--headless"))
    role = {**worker["metadata"]["labels"], names.COMPONENT: names.ENGINE_WORKER}
    worker["metadata"]["labels"] = role
    follower = worker["spec"]["containers"][0]
    for name in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports"):
        follower.pop(name, None)
    spec = {
        "leaderWorkerTemplate": {
            "size": deployment.spec.engine.nodes_per_replica,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader,
            "workerTemplate": worker,
        },
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {
                "maxSurge": count_or_share(deployment.spec.rollout.max_surge),
                "maxUnavailable": count_or_share(deployment.spec.rollout.max_unavailable),
            },
        },
    }
    name = names.child(deployment.owner.name, group.role, names.LEADER_WORKER_SET_CHARACTERS_MAX)
    child = replace(deployment.engine_child(group.role, _workload_labels(deployment, group)), name=name)
    return child.manifest("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", {"spec": spec})


def _workload_labels(deployment: Deployment, group: Group) -> dict[str, str]:
    return {**deployment.pool_labels(), names.ROLE_LABEL: group.role}


def _engine_container(deployment: Deployment, group: Group, rank_words: tuple[str, ...]) -> dict[str, Any]:
    spec, pool = deployment.spec, deployment.pool
    source = model.wiring(deployment)
    command = engine_command.command(deployment, group, source.path, rank_words)
    env = [
        pods.env("HOME", HOME_PATH),
        # Where the user id has no name in the image, some libraries ask for this instead.
        pods.env("USER", names.PROJECT),
        *source.env,
    ]
    mounts = [
        pods.mount(HOME_VOLUME, HOME_PATH),
        pods.mount(TMP_VOLUME, "/tmp"),
        *source.mounts,
        *([pods.mount(SHM_VOLUME, SHM_PATH)] if _shares_memory(group) else []),
    ]
    if pool is not None:
        parts = node.parts(pool)
        command = payload.launched(command, strict=pool.spec.failure_mode == FailureMode.FAIL_CLOSED)
        env.append(pods.env("KVCOMMONS_SOCKET", parts.socket))
        mounts += [payload.mount(), pods.mount(node.SOCKET_VOLUME, node.SOCKET_PATH, read_only=True)]
    container = {
        "name": ENGINE_CONTAINER,
        "image": engine_command.image(deployment),
        "imagePullPolicy": deployment.install.image_pull_policy,
        "command": command,
        "env": env,
        "ports": [pods.port("http", names.ENGINE_PORT)],
        "resources": group.resources.to_dict(),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        **pods.TELLING,
        "startupProbe": _probe(spec.probes.startup, period=10, failures=STARTUP_FAILURES, timeout=5),
        "readinessProbe": _probe(spec.probes.readiness, period=5, failures=3, timeout=5),
        "livenessProbe": _probe(spec.probes.liveness, period=10, failures=6, timeout=10),
        "lifecycle": {"preStop": {"exec": {"command": _drain(spec.drain_seconds)}}},
        "volumeMounts": mounts,
    }
    return _overridden(container, group)


def _overridden(container: dict[str, Any], group: Group) -> dict[str, Any]:
    """What the user says about the engine's container; the one that tries the connector must see the same."""
    own = group.template
    variables = {variable.name: variable for variable in (*group.env, *own.env)}
    over = {
        "env": [variable.to_dict() for variable in variables.values()],
        "volumeMounts": [volume_mount.to_dict() for volume_mount in own.volume_mounts],
        "securityContext": pods.said(own.container_security_context),
    }
    return merged(container, over)


def _init_containers(deployment: Deployment, group: Group) -> list[dict[str, Any]]:
    pool = deployment.pool
    if pool is None:
        return []
    image = engine_command.image(deployment)
    check = payload.check_container(image, deployment.install.image_pull_policy, deployment.spec.engine.command)
    added = [payload.copy_container(pool), _overridden(check, group)]
    if pool.per_node:
        return added
    parts = node.sidecars(pool, engine_users=_users(group))
    return [parts.prepare, *parts.containers, *added]


def _volumes(deployment: Deployment, group: Group) -> list[dict[str, Any]]:
    spec, pool = deployment.spec, deployment.pool
    found = [pods.empty_dir(HOME_VOLUME), pods.empty_dir(TMP_VOLUME), *model.wiring(deployment).volumes]
    if _shares_memory(group):
        found.append(pods.empty_dir(SHM_VOLUME, size=spec.engine.shared_memory or SHM_SIZE, medium="Memory"))
    if pool is not None:
        parts = node.parts(pool, engine_users=_users(group))
        found.append(payload.volume())
        found += [volume for volume in parts.volumes if volume["name"] == node.SOCKET_VOLUME or not pool.per_node]
    return [*found, *(volume.to_dict() for volume in group.template.volumes)]


def _shares_memory(group: Group) -> bool:
    """Ours, unless the user mounts something of his own there."""
    return all(mount.mount_path.rstrip("/") != SHM_PATH for mount in group.template.volume_mounts)


def _pod_security(deployment: Deployment, group: Group) -> dict[str, Any]:
    found = merged(pods.POD_SECURITY, pods.said(group.template.security_context))
    pool = deployment.pool
    if pool is not None and pool.per_node:
        found["supplementalGroups"] = sorted({*found.get("supplementalGroups", ()), node.identity(pool)[1]})
    return found


def _users(group: Group) -> list[int]:
    """Under which user ids a group's engines run, where the deployment says so."""
    contexts = (group.template.security_context, group.template.container_security_context)
    return [found.run_as_user for found in contexts if found is not None and found.run_as_user is not None]


def _probe(own: Probe, *, period: int, failures: int, timeout: int) -> dict[str, Any]:
    probe = pods.http_probe(
        own.path or "/health",
        "http",
        period=own.period_seconds or period,
        failures=own.failure_threshold or failures,
        timeout=own.timeout_seconds or timeout,
    )
    if own.initial_delay_seconds is not None:
        probe["initialDelaySeconds"] = own.initial_delay_seconds
    return probe


def _drain(seconds: int) -> list[str]:
    return ["python3", "-c", DRAIN, str(names.ENGINE_PORT), str(seconds)]
