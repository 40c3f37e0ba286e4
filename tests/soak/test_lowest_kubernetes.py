"""The oldest Kubernetes that the chart admits: its API server takes the definitions, keeps their rules, and the operator works on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kube_life
import pytest
import yaml
from crd_case import BASES, Case, Change, merged
from crd_cases import CASES, CHANGES
from crd_random import KINDS, Maker
from crd_server import establish, replace, send
from kube_apiserver import ApiServer
from kube_binaries import Binaries
from kube_chart import CHART
from kvcommons_operator.crd.definitions import KUBERNETES_MINOR_MIN

LOWEST = "kube-apiserver-lowest"
SEEDS = range(20_260, 20_300)

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(900)]


class Oldest(Binaries):
    """Programs of a test cluster, with the API server of the oldest Kubernetes."""

    def bring(self, *names: str) -> None:
        super().bring(*(LOWEST if name == "kube-apiserver" else name for name in names))

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(LOWEST if name == "kube-apiserver" else name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The oldest API server with our definitions."""
    server = ApiServer(tmp_path_factory.mktemp("lowest"), Oldest())
    try:
        server.start()
        establish(server)
        yield server
    finally:
        server.stop()


def test_it_is_the_version_that_the_chart_and_the_definitions_name(server: ApiServer) -> None:
    """What is tried here is what users are told."""
    version = server.request("GET", "/version")["gitVersion"]
    assert version.startswith(f"v1.{KUBERNETES_MINOR_MIN}.")
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["kubeVersion"] == f">={version.removeprefix('v')}-0"


def fault_of_case(server: ApiServer, case: Case) -> str:
    """What is wrong with how a rule is kept; empty where it is kept."""
    bad = send(server, case.kind, "default", merged(BASES[case.kind], case.bad))
    good = send(server, case.kind, "default", merged(BASES[case.kind], case.good))
    kept = bad.stored is None and case.message in bad.faults.get(case.field, "") and good.stored is not None
    return "" if kept else f"{case}: {bad.faults or 'stored'}, {good.faults}"


def fault_of_change(server: ApiServer, number: int, change: Change) -> str:
    """The same of a rule about changes."""
    name, spec = f"change-{number}", merged(BASES[change.kind], change.old)
    made = send(server, change.kind, "default", spec, name=name, dry=False)
    if made.stored is None:
        return f"{change}: {made.faults}"
    bad = replace(server, change.kind, "default", name, merged(spec, change.bad))
    good = replace(server, change.kind, "default", name, merged(spec, change.good))
    kept = bad.stored is None and change.message in bad.faults.get(change.field, "") and good.stored is not None
    return "" if kept else f"{change}: {bad.faults or 'stored'}, {good.faults}"


def test_every_rule_is_kept(server: ApiServer) -> None:
    """Each rule refuses what breaks it, with its message and its field, and takes what keeps it."""
    found = [fault_of_case(server, case) for case in CASES]
    found += [fault_of_change(server, number, change) for number, change in enumerate(CHANGES)]
    assert not [fault for fault in found if fault], "\n".join(filter(None, found))


def test_what_the_models_take_is_stored(server: ApiServer) -> None:
    """Random resources that the models find valid are valid there too."""
    for kind in KINDS:
        for seed in SEEDS:
            answer = send(server, kind, "default", Maker(seed).valid(kind))
            assert answer.stored is not None, f"{kind.KIND}, seed {seed}: {answer.faults}"


def test_the_operator_lives_on_it(tmp_path: Path) -> None:
    """Installed by helm, with the chart's rules: every kind of child is made, changed and cleared, and no request is refused."""
    with kube_life.audited(tmp_path, Oldest()) as server:
        kube_life.judge(server, kube_life.installed(server, {}), kube_life.GUESTS_BY_LABEL)
        kube_life.judge_release(server)
