"""What is wrong with pods and with the workloads that should make them: what it is, which object, and what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kvcommons_operator.naming import NO_NAMING, Missing, Naming, missing_in, missing_logins
from kvcommons_operator.observed import Container, Manifest, Pod

LAST_WORDS_CHARACTERS_MAX: Final = 200
WORDS_CHARACTERS_MAX: Final = 400
"""Of somebody else's message."""
PUZZLES_MAX: Final = 3
"""Of one resource's pods and workloads so many are looked into: a message names no more."""

IMAGE_REASONS: Final = frozenset({"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"})
BAD_REASONS: Final = IMAGE_REASONS | {
    "CreateContainerConfigError",
    "CrashLoopBackOff",
    "CreateContainerError",
    "RunContainerError",
}
REASON_OF_KIND: Final = {
    "Secret": "SecretNotFound",
    "ConfigMap": "ConfigMapNotFound",
    "PersistentVolumeClaim": "ClaimNotFound",
    "ServiceAccount": "ServiceAccountNotFound",
    "PriorityClass": "PriorityClassNotFound",
    "RuntimeClass": "RuntimeClassNotFound",
}


class Trouble(NamedTuple):
    """Why a pod, or a workload, is not well."""

    reason: str
    message: str
    stuck: bool = False
    """Waiting does not help."""
    reference: bool = False
    """Something that it refers to is not there."""
    missing: tuple[Missing, ...] = ()

    @property
    def is_image(self) -> bool:
        """An image does not come."""
        return self.reason in IMAGE_REASONS


@dataclass(frozen=True)
class Puzzle:
    """An object that does not come forward and does not say why: its Events may."""

    namespace: str
    name: str
    uid: str


def trouble(pod: Pod, naming: Naming = NO_NAMING) -> Trouble | None:
    """What is wrong with a pod, or None: it is well, or simply not there yet for no bad reason. Images before everything else."""
    if pod.ready or pod.deleting:
        return None
    for container in pod.containers:
        if container.waiting_reason in IMAGE_REASONS:
            return _image_trouble(pod, container, naming)
    if pod.unschedulable:
        return _unscheduled(pod, naming)
    for container in pod.containers:
        if container.waiting_reason in BAD_REASONS:
            return _container_trouble(pod, container, naming)
    if pod.warnings and is_silent(pod):
        # Volumes take turns at being warned of: all that is missing, in one order.
        missed = {one: said for said in pod.warnings for one in missing_in(said)}
        found = tuple(sorted(missed))
        return _not_found(pod, missed[found[0]], found, naming) if found else _warned(pod, pod.warnings[0])
    if pod.phase == "Failed":
        return Trouble("PodFailed", f"pod {pod.name} has failed", stuck=True)
    return None


def wants_image(pod: Pod) -> bool:
    """It waits for an image: that a Secret to log in with is missing is said by its Events alone."""
    return bool(pod.node) and not pod.ready and any(one.waiting_reason in IMAGE_REASONS for one in pod.containers)


def is_silent(pod: Pod) -> bool:
    """It has a node, and nothing of it has begun, and no container says why: volumes, or the sandbox, are in the way."""
    if pod.ready or pod.deleting or pod.phase != "Pending" or not pod.node:
        return False
    return not any(
        one.running or one.exit_code is not None or one.waiting_reason in BAD_REASONS for one in pod.containers
    )


def _not_found(pod: Pod, said: str, found: tuple[Missing, ...], naming: Naming, where: str = "") -> Trouble:
    told = "; ".join(naming.told(one, pod.namespace) for one in found[:PUZZLES_MAX])
    key = "KeyNotFound" if found[0].key else ""
    reason = f"{found[0].kind}{key}" if key else REASON_OF_KIND[found[0].kind]
    volume = re.search(r'for volume "([^"]+)"', said)
    at = f" for volume {volume[1]}" if volume and not found[0].name else ""
    return Trouble(reason, f"pod {pod.name}{where} waits{at}: {told}", stuck=True, reference=True, missing=found)


def _warned(pod: Pod, said: str) -> Trouble:
    """Volumes and sandboxes fail for many reasons: in the kubelet's own words."""
    reason, colon, words = said.partition(": ")
    kind = "MountFailed" if reason in ("FailedMount", "FailedAttachVolume") else "NotStarted"
    text = words if colon else said
    message = f"pod {pod.name} does not start: {text[:WORDS_CHARACTERS_MAX]}{_remedy(MOUNT_REMEDIES, text)}"
    return Trouble(kind, message, stuck=kind == "MountFailed")


MOUNT_REMEDIES: Final = (
    (re.compile(r"hostPath type check failed: (\S+) is not a directory"), "make {0} on the node (and mount the disk there), or correct the path"),
    (re.compile(r"Multi-Attach error"), "take a claim that several nodes may mount (ReadWriteMany), or one for each pod"),
)  # fmt: skip


# Containers -----------------------------------------------------------------------------------------------------------


def _image_trouble(pod: Pod, container: Container, naming: Naming) -> Trouble:
    """The kubelet goes to and fro between trying and waiting: both are one trouble, in the words of the attempt."""
    said = re.sub(r'^Back-off pulling image "[^"]*"(?:: )?', "", container.waiting_message)
    said = said.removeprefix("ErrImagePull: ")
    reason = "ImagePullBackOff" if container.waiting_reason == "ErrImagePull" else container.waiting_reason
    field = naming.of_image(container.image) if container.image else ""
    remedy = f"{_image_remedy(reason, said)}, or correct {field or 'the image'}"
    what = f"image {container.image}" if container.image else "its image"
    words = f": {said[:WORDS_CHARACTERS_MAX]}" if said else ""
    logins = tuple(sorted({one for warning in pod.warnings for one in missing_logins(warning)}))
    if logins:
        remedy = "; ".join(naming.told(one, pod.namespace) for one in logins[:PUZZLES_MAX])
    message = f"pod {pod.name}, container {container.name}: {what} does not come{words}. Remedy: {remedy}"
    return Trouble(reason, message, stuck=True, reference=bool(logins) or reason == "InvalidImageName", missing=logins)


IMAGE_REMEDIES: Final = (
    (re.compile(r"unauthorized|denied|authoriz|credential|\b40[13]\b", re.IGNORECASE), "let the pods log in there (imagePullSecrets)"),
    (re.compile(r"no such host|dial tcp|timeout|refused|x509|certificate|unreachable", re.IGNORECASE), "let the machine reach the registry"),
    (re.compile(r"not found|manifest unknown|does not exist", re.IGNORECASE), "push that tag"),
    (re.compile(r"no match for platform|exec format", re.IGNORECASE), "build it for this machine's architecture"),
)  # fmt: skip


def _image_remedy(reason: str, said: str) -> str:
    if reason == "ErrImageNeverPull":
        return "load it on the machine, or allow pulling (the operator's setting image_pull_policy)"
    if reason == "InvalidImageName":
        return "give it a valid name"
    return next((remedy for words, remedy in IMAGE_REMEDIES if words.search(said)), "see that the machine can pull it")


CONTAINER_REMEDIES: Final = (
    (re.compile(r"runAsNonRoot"), "say runAsUser in the security context, or take an image whose user is a number and not root"),
    (re.compile(r"no such file or directory|executable file not found"), "see the command, and the image that should have it"),
)  # fmt: skip


def _container_trouble(pod: Pod, container: Container, naming: Naming) -> Trouble:
    reason, why = container.waiting_reason, container.waiting_message or container.waiting_reason
    found = missing_in(why) if reason == "CreateContainerConfigError" else ()
    if found:
        return _not_found(pod, why, found, naming, f", container {container.name},")
    # The kubelet's words for a crash are how long it waits, another time each time.
    told = "it ends again and again" if reason == "CrashLoopBackOff" else why[:WORDS_CHARACTERS_MAX]
    message = f"pod {pod.name}, container {container.name}: {told}{_end(container)}{_remedy(CONTAINER_REMEDIES, why)}"
    return Trouble(reason, message, stuck=True)


def _end(container: Container) -> str:
    """How it ended last."""
    if container.exit_code is None:
        return ""
    if container.exit_reason == "OOMKilled":
        return " (it was killed for want of memory. Remedy: raise its memory limit)"
    return f" (it ended with status {container.exit_code}{_last_words(container)})"


def _last_words(container: Container) -> str:
    """The last line that it wrote, where its status has it."""
    lines = [line.strip() for line in container.termination_message.splitlines() if line.strip()]
    return f": {lines[-1][:LAST_WORDS_CHARACTERS_MAX]}" if lines else ""


# Scheduling and admission ---------------------------------------------------------------------------------------------

SCHEDULING_REMEDIES: Final = (
    (re.compile(r"unbound immediate PersistentVolumeClaims"), "see why the claim is not bound: kubectl describe pvc"),
    (re.compile(r"Insufficient (\S+?)[,.]?(?:\s|$)"), "add machines with more {0}, or ask for less in resources"),
    (re.compile(r"node affinity|node selector|didn't match Pod"), "see nodeSelector and affinity, and the labels of the nodes"),
    (re.compile(r"untolerated taint"), "see tolerations, and the taints of the nodes"),
    (re.compile(r"free ports"), "give it a port that is free on the nodes"),
)  # fmt: skip
ADMISSION_REMEDIES: Final = (
    (re.compile(r"violates PodSecurity"), "give the namespace a Pod Security level that allows it (label enforce), or change the pods"),
    (re.compile(r"exceeded quota|must specify .* for"), "see the namespace's ResourceQuota, or change resources"),
    (re.compile(r"(?:maximum|minimum) .* usage per|LimitRange"), "see the namespace's LimitRange, or change resources"),
    (re.compile(r"webhook|admission"), "see the admission plugin that refuses it"),
)  # fmt: skip


def _unscheduled(pod: Pod, naming: Naming) -> Trouble:
    """The scheduler is the one that misses a claim: pods wait for it before they have a node."""
    found = missing_in(pod.unschedulable)
    if found:
        return _not_found(pod, pod.unschedulable, found, naming)
    said = pod.unschedulable.partition(" preemption:")[0][:WORDS_CHARACTERS_MAX].rstrip()
    message = f"no node takes pod {pod.name}: {said}{_remedy(SCHEDULING_REMEDIES, said)}"
    return Trouble("Unschedulable", message, stuck=True)


def _remedy(table: Iterable[tuple[re.Pattern[str], str]], said: str) -> str:
    for pattern, remedy in table:
        match = pattern.search(said)
        if match is not None:
            return f" Remedy: {remedy.format(*match.groups())}"
    return ""


def refused_pods(live: Manifest, warnings: Sequence[str] = (), naming: Naming = NO_NAMING) -> Trouble | None:
    """Why a workload can make no pods: a quota, Pod Security, an account that is not there.

    A Deployment says so itself; what a DaemonSet and a StatefulSet meet stands in their Events alone.

    :param warnings: of the workload's Events, as "Reason: note", the newest first."""
    status = live.get("status") or {}
    told = [
        str(one.get("message") or "")
        for one in status.get("conditions") or ()
        if one.get("type") == "ReplicaFailure" and one.get("status") == "True"
    ]
    if not told and lacks_pods(live):
        told = [said.partition(": ")[2] for said in warnings if said.startswith("FailedCreate: ")]
    if not told:
        return None
    kind, metadata = live["kind"], live["metadata"]
    said = _without_pod_name(told[0])[:WORDS_CHARACTERS_MAX]
    found = missing_in(said)
    namespace = str(metadata.get("namespace") or "")
    known = (
        f" ({'; '.join(naming.told(one, namespace) for one in found)})"
        if found
        else _remedy(ADMISSION_REMEDIES, f"{said}.")
    )
    message = f"{kind} {metadata['name']} may not make its pods: {said.rstrip('.')}.{known}"
    return Trouble("PodsRefused", message, stuck=True, reference=bool(found), missing=found)


def lacks_pods(live: Mapping[str, Any]) -> bool:
    """A workload whose controller has looked at it and has made fewer pods than it should."""
    status, spec = live.get("status") or {}, live.get("spec") or {}
    if not status.get("observedGeneration"):
        return False
    if live.get("kind") == "DaemonSet":
        return bool(status.get("currentNumberScheduled", 0) < status.get("desiredNumberScheduled", 0))
    return bool(status.get("replicas", 0) < spec.get("replicas", 1))


def _without_pod_name(said: str) -> str:
    """Each attempt has a new name: the same words stay the same message."""
    short = re.sub(r"^(?:Error creating: )?(?:create Pod \S+ in \w+ \S+ failed error: )?", "", said)
    return re.sub(r'^pods "[^"]*" is forbidden: ', "", short)


# Many -----------------------------------------------------------------------------------------------------------------


def troubles(pods: Iterable[Pod], naming: Naming = NO_NAMING) -> list[tuple[Pod, Trouble]]:
    """Those of these pods that are not well: what an image or a missing object holds up first, then by name."""
    found = [(pod, problem) for pod in pods if (problem := trouble(pod, naming)) is not None]
    return sorted(found, key=lambda one: (not one[1].is_image, not one[1].reference, one[0].name))


def puzzles(pods: Iterable[Pod], workloads: Iterable[Manifest] = ()) -> tuple[Puzzle, ...]:
    """What is worth asking the Events about, a bounded number of them: the same ones for as long as they last."""
    found = [
        Puzzle(str(live["metadata"].get("namespace") or ""), live["metadata"]["name"], live["metadata"].get("uid", ""))
        for live in workloads
        if live["kind"] in ("DaemonSet", "StatefulSet") and lacks_pods(live)
    ]
    silent = sorted((pod for pod in pods if is_silent(pod) or wants_image(pod)), key=lambda pod: pod.name)
    found += [Puzzle(pod.namespace, pod.name, pod.uid) for pod in silent[:PUZZLES_MAX]]
    return tuple(one for one in found[: 2 * PUZZLES_MAX] if one.uid)
