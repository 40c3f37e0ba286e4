"""What a pod means for the fleet, from the API's JSON."""

from typing import Any

import pytest
from fake_kube import Pod, pod
from kvcommons_operator.build.deployment import AGGREGATED
from kvcommons_router.pod_set import WANTED_MAX, PodSet
from kvcommons_router.pod_watch import LineSplitter, WatchError
from kvcommons_router.pods import PodView, UnreadablePodError, view_of
from kvcommons_router.roster import Presence
from kvcommons_router.settings import KubernetesSettings
from kvcommons_router.settings_instances import Role
from kvcommons_router.wanted_text import WantedReader

SETTINGS = KubernetesSettings(namespace="n", selector="a=b", model="m", models=("lora",), port=8001)


def view(one: Pod, **more: Any) -> PodView:
    """What a pod is to a router with these settings."""
    return view_of(one, SETTINGS.model_copy(update=more))


def test_a_ready_pod_is_an_instance() -> None:
    """Its name, its address, its models, the cache node of its machine."""
    (one,) = view(pod("p", "10.1.2.3")).wanted
    assert (one.settings.name, one.settings.url, one.settings.names) == ("p", "http://10.1.2.3:8001", ("m", "lora"))
    assert (one.settings.node, one.presence, one.settings.role) == ("node-of-p", Presence.READY, Role.AGGREGATED)
    assert view(pod("p", "fd00::12")).wanted[0].settings.url == "http://[fd00::12]:8001"
    assert view(pod("p"), node_by="podName").wanted[0].settings.node == "p"


@pytest.mark.parametrize(
    ("change", "presence"),
    [
        ({}, Presence.READY),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, Presence.OUT),
        ({"status": {"conditions": None}}, Presence.OUT),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, Presence.LEAVING),
        ({"status": {"phase": "Failed"}}, Presence.LEAVING),
        ({"status": {"phase": "Succeeded"}}, Presence.LEAVING),
    ],
)
def test_presence_is_the_ready_condition_and_no_deletion(change: dict[str, Any], presence: Presence) -> None:
    """Deletion counts before readiness, and an ended pod is leaving."""
    one = pod("p")
    for part, values in change.items():
        one[part] |= values
    assert view(one).wanted[0].presence is presence


def test_an_engines_restart_is_another_incarnation_and_a_neighbours_is_not() -> None:
    """The container that is named counts; where none is, all of them do."""

    def life(*containers: tuple[str, int], uid: str = "u") -> str:
        one = pod("p", uid=uid)
        one["status"]["containerStatuses"] = [{"name": name, "restartCount": count} for name, count in containers]
        return view(one).wanted[0].incarnation

    assert life(("engine", 0), ("other", 0)) == life(("engine", 0), ("other", 5))
    assert len({life(("engine", 0)), life(("engine", 1)), life(("engine", 0), uid="v")}) == 3
    assert life(("x", 0), ("y", 0)) != life(("x", 0), ("y", 1))


def test_each_data_parallel_rank_is_an_instance() -> None:
    """They share the pod's address and differ by rank; one rank is the pod itself."""
    found = view(pod("p", annotations={"kvcommons.io/data-parallel-size": "3"})).wanted
    assert [(one.settings.name, one.settings.dp_rank) for one in found] == [("p-dp0", 0), ("p-dp1", 1), ("p-dp2", 2)]
    (single,) = view(pod("p", annotations={"kvcommons.io/data-parallel-size": "1"})).wanted
    assert (single.settings.name, single.settings.dp_rank) == ("p", None)


@pytest.mark.parametrize("size", ["0", "-1", "257", "1.5", "", "²", "many", 3])
def test_a_rank_count_that_is_none_is_told_and_taken_as_one(size: object) -> None:
    """The pod serves, and its mistake is said."""
    found = view(pod("p", annotations={"kvcommons.io/data-parallel-size": size}))
    assert [one.settings.name for one in found.wanted] == ["p"]
    assert "kvcommons.io/data-parallel-size" in found.problems[0]


def test_a_role_is_a_label_or_an_annotation() -> None:
    """One that does not exist is told, and taken as whole requests."""
    assert view(pod("p", labels={"kvcommons.io/role": "decode"})).wanted[0].settings.role is Role.DECODE
    assert view(pod("p", annotations={"kvcommons.io/role": "prefill"})).wanted[0].settings.role is Role.PREFILL
    whole = view(pod("p", labels={"kvcommons.io/role": AGGREGATED}))
    assert (whole.wanted[0].settings.role, whole.problems) == (Role.AGGREGATED, ())
    found = view(pod("p", labels={"kvcommons.io/role": "encode"}))
    assert (found.wanted[0].settings.role, len(found.problems)) == (Role.AGGREGATED, 1)


@pytest.mark.parametrize("garbage", [None, 1, [], {}, {"metadata": None}, {"metadata": {"name": 7}}, "pod"])
def test_what_is_no_pod_is_refused(garbage: object) -> None:
    """Nothing is guessed of an object without a name."""
    with pytest.raises(UnreadablePodError):
        view_of(garbage, SETTINGS)


@pytest.mark.parametrize("address", [None, "", "localhost", "10.0.0.1/evil", "1.2.3.4 x", 5])
def test_a_pod_without_an_address_is_nobody(address: object) -> None:
    """Only what is an IP address is connected to."""
    one = pod("p")
    one["status"]["podIP"] = address
    assert view(one).wanted == ()


def test_a_set_of_pods_follows_lists_and_events() -> None:
    """A list replaces what was there, a broken one changes nothing, a problem is told once."""
    pods, reader = PodSet(SETTINGS), WantedReader()

    def names() -> list[str]:
        return [one.settings.name for one in reader.read(pods.text())]

    odd = pod("b", labels={"kvcommons.io/role": "x"})
    assert len(pods.replace([pod("a"), odd])) == 1
    assert pods.put(odd) == []
    assert names() == ["a", "b"]
    with pytest.raises(UnreadablePodError):
        pods.replace([pod("c"), {}])
    pods.drop(pod("a"))
    pods.drop(pod("nobody"))
    assert names() == ["b"]
    pods.replace([])
    assert (names(), pods.text()) == ([], b"")


def test_of_too_many_pods_the_ready_ones_are_put_up() -> None:
    """What is put up has a bound, and who waits for nothing is not in the way of who serves."""
    pods = PodSet(SETTINGS)
    pods.replace([pod(f"out-{number:05}", ready=False) for number in range(WANTED_MAX)] + [pod("ready")])
    found = WantedReader().read(pods.text())
    assert (len(found), found[0].settings.name) == (WANTED_MAX, "ready")


def test_lines_are_whole_or_not_said() -> None:
    """A line may come in any pieces; an endless one is an error."""
    splitter = LineSplitter()
    assert [splitter.feed(piece) for piece in (b"on", b"e\ntw", b"o\n\n \nthr", b"ee")] == [[], [b"one"], [b"two"], []]
    with pytest.raises(WatchError, match="bytes"):
        splitter.feed(b"x" * 5_000_000)
