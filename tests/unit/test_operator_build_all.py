"""What holds for every manifest of every example."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import operator_cases as cases
import operator_examples as examples
import pytest
from kvcommons_operator import names
from kvcommons_operator.kube.kinds import kind_of
from kvcommons_operator.observed import Manifest, Ref
from kvcommons_operator.plan import plan_deployment, plan_pool
from restricted import violations

BUILT = dict(cases.built())
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def templates(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """(workload, its pods' template)."""
    for one in manifests:
        if "template" in (one.get("spec") or {}):
            yield one, one["spec"]["template"]


@pytest.mark.parametrize("name", BUILT)
def test_names_and_labels_are_valid(name: str) -> None:
    """No name is over 63 characters (52 for what Kubernetes makes names and labels from), and no label's value is refused."""
    for one in BUILT[name]:
        limit = 52 if one["kind"] in ("StatefulSet", "Deployment", "DaemonSet", "LeaderWorkerSet") else 63
        assert len(one["metadata"]["name"]) <= limit
        assert NAME.fullmatch(one["metadata"]["name"])
        found = [one["metadata"], *(template["metadata"] for _, template in templates([one]))]
        for value in (value for metadata in found for value in metadata["labels"].values()):
            assert len(value) <= 63
            assert LABEL.fullmatch(value)


@pytest.mark.parametrize("name", BUILT)
def test_no_two_children_are_the_same_object(name: str) -> None:
    """Every manifest is of an object of its own, and of a kind that the operator knows how to reach."""
    refs = [Ref.of(one) for one in BUILT[name]]
    assert len(refs) == len(set(refs))
    assert all(kind_of(one) for one in BUILT[name])


@pytest.mark.parametrize("name", BUILT)
def test_everything_carries_the_labels_that_it_is_found_by(name: str) -> None:
    """Who made it, what it belongs to and what it is stand on every child and on every pod."""
    wanted = {names.NAME, names.INSTANCE, names.COMPONENT, names.PART_OF, names.MANAGED_BY}
    for one in BUILT[name]:
        assert wanted <= set(one["metadata"]["labels"])
        assert one["metadata"]["labels"][names.MANAGED_BY] == names.MANAGER
    for _, template in templates(BUILT[name]):
        assert wanted <= set(template["metadata"]["labels"])


@pytest.mark.parametrize("name", BUILT)
def test_workloads_select_their_own_pods_and_no_others(name: str) -> None:
    """A selector matches its template's labels, and no other workload's."""
    found = list(templates(BUILT[name]))
    for workload, _ in found:
        wanted = workload["spec"]["selector"]["matchLabels"].items()
        matching = [one for one, template in found if wanted <= template["metadata"]["labels"].items()]
        assert matching == [workload]


@pytest.mark.parametrize("name", BUILT)
def test_no_pod_is_given_what_it_has_no_use_for(name: str) -> None:
    """Service links are off (a Service's name could pass for a setting), tokens only where the API server is asked."""
    for one, template in templates(BUILT[name]):
        spec = template["spec"]
        assert spec["enableServiceLinks"] is False
        is_router = one["metadata"]["labels"][names.COMPONENT] == names.ROUTER
        assert spec["automountServiceAccountToken"] is is_router


@pytest.mark.parametrize("name", BUILT)
def test_what_a_container_said_last_stands_in_its_status(name: str) -> None:
    """A container that fails without a message of its own is told by the end of its log, whichever of ours it is."""
    for spec in examples.pod_specs(BUILT[name]):
        for one in (*spec["containers"], *spec.get("initContainers", ())):
            assert one["terminationMessagePolicy"] == "FallbackToLogsOnError", one["name"]


@pytest.mark.parametrize("name", BUILT)
def test_mounts_have_their_volumes(name: str) -> None:
    """Every mount names a volume of its pod, every volume is mounted, and no path is mounted twice."""
    for spec in examples.pod_specs(BUILT[name]):
        volumes = [volume["name"] for volume in spec["volumes"]]
        containers = [*spec["containers"], *spec.get("initContainers", ())]
        assert len(volumes) == len(set(volumes))
        assert {mount["name"] for one in containers for mount in one["volumeMounts"]} == set(volumes)
        for one in containers:
            paths = [mount["mountPath"] for mount in one["volumeMounts"]]
            assert len(paths) == len(set(paths))


@pytest.mark.parametrize("name", BUILT)
def test_no_secret_is_written_outside_a_secret(name: str) -> None:
    """What is derived stands in Secrets alone: no variable, argument or annotation holds it."""
    secrets: set[str] = set()
    for one in BUILT[name]:
        if one["kind"] == "Secret":
            secrets |= set(one["data"].values())
    rest = repr([one for one in BUILT[name] if one["kind"] != "Secret"])
    assert not any(value in rest for value in secrets)
    assert examples.INSTALL.root_secret.hex() not in repr(BUILT[name])


RESTRICTED = [
    name
    for name, manifests in BUILT.items()
    if not any("hostPath" in volume for spec in examples.pod_specs(manifests) for volume in spec["volumes"])
]


@pytest.mark.parametrize("name", RESTRICTED)
def test_without_a_host_path_every_pod_runs_under_restricted(name: str) -> None:
    """Only placement perNode needs more than Pod Security level restricted allows."""
    assert [violations(spec) for spec in examples.pod_specs(BUILT[name]) if violations(spec)] == []


def test_sidecars_are_among_what_runs_under_restricted() -> None:
    """The examples with sidecars, Sentinel's among them, are really judged by the test before."""
    assert {"pool: sidecar", "pool: sentinel", "deployment: sidecar", "deployment: no pool"} <= set(RESTRICTED)


def test_the_checker_sees_what_the_standard_forbids() -> None:
    """A per-node pod breaks restricted by its host path and by the one step that is root."""
    manifests = BUILT["pool: per node"]
    (spec,) = [one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "DaemonSet"]
    found = violations(spec)
    assert found[0] == "volume kvcommons-socket: hostPath"
    assert {words.partition(":")[0] for words in found[1:]} == {"prepare"}


def again(name: str, first: list[Manifest]) -> Any:
    """The plan for a world in which all of the first plan exists."""
    apis, live = frozenset(examples.OPTIONAL), examples.live(first)
    kind, _, which = name.partition(": ")
    if kind == "pool":
        return plan_pool(cases.pools()[which], examples.pool_world(apis=apis, children=live))
    ifd, pool = cases.deployments()[which]
    return plan_deployment(ifd, examples.world(apis=apis, pool=pool, children=live))


@pytest.mark.parametrize("name", BUILT)
def test_a_plan_for_what_is_there_says_the_same_again(name: str) -> None:
    """Applying a plan leaves nothing to do: the next one wishes for the same objects and deletes none."""
    plan = again(name, BUILT[name])
    plain = [
        {**one, "metadata": {k: v for k, v in one["metadata"].items() if k != "resourceVersion"}} for one in plan.apply
    ]
    assert plain == BUILT[name]
    assert plan.delete == ()
