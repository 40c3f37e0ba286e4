"""Why pods do not come: which object is missing, which field names it, and what to do; from others' words alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import operator_examples as examples
import pytest
from kvcommons_operator.naming import Missing, Naming, missing_in
from kvcommons_operator.observed import Container, Manifest, Pod
from kvcommons_operator.troubles import is_silent, puzzles, refused_pods, trouble, troubles

HUB = {"model": {"source": {"hub": {"repo": "a/b", "tokenSecretRef": {"name": "hub", "key": "token"}}}}}
NAMING = Naming(
    (("", HUB), ("KVCachePool llm/commons", {"images": {"node": "node:9"}})), frozenset({"commons-node-keys"})
)


def pod(**more: Any) -> Pod:
    return examples.engine_pod(0, **{"ready": False, "phase": "Pending", "containers": (), **more})


def waiting(reason: str, message: str = "", **more: Any) -> Pod:
    one = Container(name="engine", waiting_reason=reason, waiting_message=message, **more)
    return pod(containers=(one,))


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ('secret "hub" not found', [Missing("Secret", "hub")]),
        ("couldn't find key token in Secret llm/hub", [Missing("Secret", "hub", "token")]),
        ('configmap "own" not found', [Missing("ConfigMap", "own")]),
        ("couldn't find key a.b in ConfigMap llm/own", [Missing("ConfigMap", "own", "a.b")]),
        ('MountVolume.SetUp failed for volume "v" : references non-existent secret key: k', [Missing("Secret", "", "k")]),
        ('[secret "a" not found, secret "b" not found]', [Missing("Secret", "a"), Missing("Secret", "b")]),
        ('0/2 nodes are available: persistentvolumeclaim "models" not found.', [Missing("PersistentVolumeClaim", "models")]),
        ('error looking up service account llm/x: serviceaccount "x" not found', [Missing("ServiceAccount", "x")]),
        ("no PriorityClass with name top was found", [Missing("PriorityClass", "top")]),
        ("0/2 nodes are available: 2 Insufficient memory.", []),
    ],
)  # fmt: skip
def test_what_is_missing_is_read_from_others_words(words: str, missing: list[Missing]) -> None:
    """The kubelet, the scheduler and controllers each have their own words for an object that is not there."""
    assert list(missing_in(words)) == missing


def test_a_missing_secret_names_object_key_field_and_remedy() -> None:
    """The message has all that somebody needs to mend it without looking anywhere else."""
    found = trouble(waiting("CreateContainerConfigError", "couldn't find key token in Secret llm/hub"), NAMING)
    assert found is not None
    assert (found.reason, found.reference, found.stuck) == ("SecretKeyNotFound", True, True)
    assert found.message == (
        "pod chat-engine-0, container engine, waits: Secret llm/hub has no key token: add the key, or correct "
        "spec.model.source.hub.tokenSecretRef"
    )


def test_a_secret_of_the_operators_own_is_not_left_to_the_user() -> None:
    """Nobody is told to create what the operator makes."""
    found = trouble(waiting("CreateContainerConfigError", 'secret "commons-node-keys" not found'), NAMING)
    assert found is not None
    assert found.message.endswith("it is one of the operator's own, which makes it again")


def test_an_image_comes_before_everything_else_and_stays_one_trouble() -> None:
    """The kubelet goes to and fro between trying and waiting; reason and message stay the same meanwhile."""
    attempt = "failed to pull and unpack image: failed to resolve reference: not found"
    tried = waiting("ErrImagePull", attempt, image="vllm:9")
    waits = waiting("ImagePullBackOff", f'Back-off pulling image "vllm:9": ErrImagePull: {attempt}', image="vllm:9")
    assert trouble(tried) == trouble(waits)
    found = trouble(waits, Naming((("", {"engine": {"image": "vllm:9"}}),)))
    assert found is not None
    assert found.message.endswith("Remedy: push that tag, or correct spec.engine.image")
    missing = pod(name="a", unschedulable='persistentvolumeclaim "models" not found')
    assert [one.reason for _, one in troubles([missing, waits])] == ["ImagePullBackOff", "ClaimNotFound"]


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("pull access denied, repository does not exist or may require authorization", "imagePullSecrets"),
        ("dial tcp: lookup registry.example: no such host", "reach the registry"),
        ("no match for platform in manifest", "architecture"),
    ],
)
def test_the_remedy_of_an_image_fits_the_registrys_answer(said: str, remedy: str) -> None:
    """A registry that asks for a login, one that is away, and one that has another architecture are three different troubles."""
    found = trouble(waiting("ErrImagePull", said, image="x:1"))
    assert found is not None
    assert remedy in found.message


def test_an_image_that_wants_a_login_that_is_not_there_names_the_secret() -> None:
    """The kubelet goes on without a missing pull Secret and the registry refuses it: the Secret is the cause, and its Events tell of it."""
    naming = Naming((("", {"podTemplate": {"imagePullSecrets": [{"name": "registry"}]}}),))
    said = "Unable to retrieve some image pull secrets (registry, other); attempting to pull the image may not succeed."
    pulling = waiting("ImagePullBackOff", "denied", image="x:1")
    assert [one.uid for one in puzzles([pulling])] == ["engine-0"]
    found = trouble(replace(pulling, warnings=(f"FailedToRetrieveImagePullSecret: {said}",)), naming)
    assert found is not None
    assert (found.reason, found.reference) == ("ImagePullBackOff", True)
    assert found.message.endswith(
        "Secret llm/other does not exist: create it; Secret llm/registry does not exist: create it, or correct "
        "spec.podTemplate.imagePullSecrets[0]"
    )


def test_what_a_container_refuses_is_no_missing_reference() -> None:
    """An image that would run as root names nothing that could be created: its remedy is another."""
    said = 'container has runAsNonRoot and image will run as root (pod: "p", container: engine)'
    found = trouble(waiting("CreateContainerConfigError", said))
    assert found is not None
    assert (found.reason, found.reference) == ("CreateContainerConfigError", False)
    assert "Remedy: say runAsUser" in found.message


def test_a_crash_is_one_trouble_however_long_the_kubelet_waits() -> None:
    """The pause grows with each attempt; the message stays, with the last words or the want of memory."""
    pauses = [f"back-off {n}s restarting failed container=engine" for n in (10, 20)]
    first, second = (
        trouble(waiting("CrashLoopBackOff", said, exit_code=1, termination_message="no GPU")) for said in pauses
    )
    assert first == second
    assert first is not None
    assert first.message.endswith("it ends again and again (it ended with status 1: no GPU)")
    killed = trouble(waiting("CrashLoopBackOff", pauses[0], exit_code=137, exit_reason="OOMKilled"))
    assert killed is not None
    assert "want of memory. Remedy: raise its memory limit" in killed.message


def test_a_pod_that_no_node_takes_says_what_is_short() -> None:
    """The scheduler's words without its talk of preemption, and what to change."""
    said = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available"
    found = trouble(pod(unschedulable=said))
    assert found is not None
    assert (found.reason, found.reference) == ("Unschedulable", False)
    assert found.message.endswith(
        "2 Insufficient nvidia.com/gpu. Remedy: add machines with more nvidia.com/gpu, or ask for less in resources"
    )


def test_a_volume_that_is_not_mounted_is_learnt_from_events() -> None:
    """All that its volumes miss in one message, whichever of them was warned of last."""
    words = [
        f'FailedMount: MountVolume.SetUp failed for volume "{v}" : secret "{n}" not found'
        for v, n in (("v", "b"), ("w", "a"))
    ]
    both = [trouble(pod(warnings=tuple(order))) for order in (words, words[::-1])]
    assert both[0] == both[1]
    assert both[0] is not None
    assert (
        both[0].message
        == "pod chat-engine-0 waits: Secret llm/a does not exist: create it; Secret llm/b does not exist: create it"
    )
    started = pod(warnings=tuple(words), containers=(Container(name="check", init=True, running=True),))
    assert trouble(started) is None, "what has begun has its volumes"


def test_other_warnings_are_told_in_the_kubelets_words() -> None:
    """A volume plugin or a sandbox that fails is not understood, and still told."""
    found = trouble(pod(warnings=("FailedMount: mount failed: exit status 32",)))
    assert found is not None
    assert (found.reason, found.stuck, found.reference) == ("MountFailed", True, False)
    found = trouble(pod(warnings=("FailedCreatePodSandBox: no address is left",)))
    assert found is not None
    assert (found.reason, found.stuck) == ("NotStarted", False)


def workload(kind: str, **status: Any) -> Manifest:
    metadata = {"name": "commons-node", "namespace": "llm", "uid": "uid-w"}
    return {"kind": kind, "metadata": metadata, "spec": {"replicas": 1}, "status": {"observedGeneration": 1, **status}}


def test_a_deployment_says_itself_that_its_pods_are_refused() -> None:
    """Admission's words without the name of a pod that is another one each time, and what to do."""
    said = 'pods "chat-engine-abc-{}" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes'
    told = [
        refused_pods(
            workload("Deployment", conditions=[{"type": "ReplicaFailure", "status": "True", "message": said.format(n)}])
        )
        for n in range(2)
    ]
    assert told[0] == told[1]
    assert told[0] is not None
    assert told[0].message.startswith('Deployment commons-node may not make its pods: violates PodSecurity "restricted')
    assert "Remedy: give the namespace a Pod Security level" in told[0].message


def test_a_daemon_set_is_asked_by_its_events_only_while_it_lacks_pods() -> None:
    """Its status says nothing of admission: where pods are missing its Events are read, and believed."""
    lacking = workload("DaemonSet", desiredNumberScheduled=2, currentNumberScheduled=0)
    whole = workload("DaemonSet", desiredNumberScheduled=2, currentNumberScheduled=2)
    said = ('FailedCreate: Error creating: pods "n-x" is forbidden: exceeded quota: q, requested: pods=1',)
    assert [one.uid for one in puzzles((), (lacking, whole))] == ["uid-w"]
    found = refused_pods(lacking, said)
    assert found is not None
    assert "exceeded quota: q, requested: pods=1. Remedy: see the namespace's ResourceQuota" in found.message
    assert refused_pods(whole, said) is None
    assert refused_pods(workload("DaemonSet", observedGeneration=0, desiredNumberScheduled=2), said) is None


def test_only_a_few_silent_pods_are_puzzles() -> None:
    """However many pods hang, a bounded number of them is asked about; what is well or says why itself is none of them."""
    silent = [pod(name=f"p-{n}", uid=f"u-{n}") for n in range(100)]
    assert [one.uid for one in puzzles(silent)] == ["u-0", "u-1", "u-10"]
    assert not is_silent(pod(node=""))
    assert not is_silent(pod(ready=True))
    assert not is_silent(waiting("CrashLoopBackOff"))
