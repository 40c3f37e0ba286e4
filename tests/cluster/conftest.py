"""A real Kubernetes for the tests here: `apiserver` (etcd and an API server), `controllers` beside it, `cluster` (with kubelets)."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import kube_chart
import kube_cluster
import kube_external
import kube_kept
import kube_reaper
import pytest
from kube_apiserver import ApiServer
from kube_binaries import Binaries
from kube_chart import Helm
from kube_client import MERGE_PATCH
from kube_cluster import Cluster
from kube_external import External
from kube_process import Process
from kube_served import Served
from operator_process import Attendant, Operators, Place, install_crds

FOLDERS = Path(tempfile.gettempdir())
PREFIX = "kvcommons-kube-"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by fixture; the first test of a fixture pays for its start, and once ever for the build."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "cluster" in names:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(1_800))
        elif "apiserver" in names:
            item.add_marker(pytest.mark.apiserver)
            item.add_marker(pytest.mark.timeout(300, func_only=True))


@pytest.fixture(scope="session")
def kube_binaries() -> Binaries:
    """Programs by name: `kube_binaries["helm"]` is a path; what is missing is built at once, once."""
    return Binaries()


@pytest.fixture(scope="session")
def kube_folder() -> Iterator[Path]:
    """A folder that is cleared, with all that runs from it, however this run ends."""
    kube_reaper.clear_abandoned(FOLDERS, f"{PREFIX}*")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
    watcher = kube_reaper.Watcher(folder)
    yield folder
    watcher.close()


@pytest.fixture(scope="session")
def apiserver(kube_binaries: Binaries, kube_folder: Path) -> Iterator[ApiServer]:
    """A real API server with the administrator's client. No controllers: nothing is collected, nothing becomes ready."""
    folder = kube_folder / "apiserver"
    folder.mkdir()
    kubeconfig = kube_external.chosen()
    if kubeconfig is None:
        kube_binaries.bring("etcd", "kube-apiserver", "kubectl")
        server = ApiServer(folder, kube_binaries)
    else:
        server = External(folder, kube_binaries, kubeconfig)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def cluster(kube_binaries: Binaries, kube_folder: Path) -> Iterator[Cluster]:
    """A whole cluster of two nodes, for root; with KVCOMMONS_NO_SKIP its absence is a failure."""
    if kube_external.chosen():
        kube_external.refuse()
    reason = kube_cluster.obstacle()
    if reason:
        pytest.skip(reason)
    kube_binaries.bring(*kube_cluster.PROGRAMS)
    folder = kube_folder / "cluster"
    folder.mkdir()
    cluster = Cluster(folder, kube_binaries)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def controllers(apiserver: ApiServer, kube_binaries: Binaries) -> Iterator[Process]:
    """kube-controller-manager beside the API server: garbage collection, namespaces, Deployments, HPA (no pod runs)."""
    if isinstance(apiserver, External):
        kube_external.refuse()
    command = [
        kube_binaries["kube-controller-manager"],
        f"--kubeconfig={apiserver.kubeconfig}",
        f"--service-account-private-key-file={apiserver.folder / 'tokens.key'}",
        f"--root-ca-file={apiserver.ca}",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--secure-port=0",
    ]
    process = Process("kube-controller-manager", command, apiserver.folder)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def namespace(apiserver: ApiServer, request: pytest.FixtureRequest) -> Generator[str]:
    """A namespace that no other test uses."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{words}-{next(_numbers)}"
    apiserver.create_namespace(name)
    yield name
    apiserver.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def own_apis(apiserver: ApiServer) -> ApiServer:
    """The API server with our CRDs."""
    install_crds(apiserver)
    return apiserver


@pytest.fixture
def place(own_apis: ApiServer, namespace: str) -> Place:
    """This test's namespace, as one looks at it."""
    return Place(own_apis, namespace)


@pytest.fixture
def operators(own_apis: ApiServer, namespace: str, tmp_path: Path) -> Iterator[Operators]:
    """Starts operators of this test's namespace alone; what they said is shown if the test fails."""
    made = Operators(own_apis, namespace, tmp_path)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def attendant(
    own_apis: ApiServer, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Attendant]:
    """An operator for those tests of a module that neither stop it nor count what it does."""
    users = [item for item in request.session.items if item.path == request.path]
    count = sum(name in ("attended", "elsewhere") for item in users for name in getattr(item, "fixturenames", ()))
    name = re.sub(r"[^a-z0-9]+", "-", request.path.stem.removeprefix("test_"))
    made = Attendant(
        own_apis,
        f"{name}-{next(_numbers)}",
        count,
        tmp_path_factory.mktemp("attendant"),
        events_after_seconds=1,
        lease_seconds=30,
    )
    yield made
    made.stop()


@pytest.fixture
def attended(attendant: Attendant) -> Iterator[Place]:
    """A namespace of this test's own, which an operator looks after; what that said meanwhile is shown if the test fails."""
    before = len(attendant.operator.log)
    yield attendant.place()
    print(f"--- attendant\n{attendant.operator.log[before:][-20_000:]}")  # noqa: T201 - pytest shows it with a failure


@pytest.fixture
def elsewhere(attendant: Attendant) -> Place:
    """Another namespace than the pool's, of the same operator, with the label `team: chat`."""
    place = attendant.place()
    change = {"metadata": {"labels": {"team": "chat"}}}
    attendant.apiserver.request("PATCH", f"/api/v1/namespaces/{place.namespace}", change, MERGE_PATCH)
    return place


@pytest.fixture(scope="session")
def helm(cluster: Cluster, kube_binaries: Binaries) -> Helm:
    """The real helm, as the cluster's administrator."""
    kube_binaries.bring("helm")
    return Helm(cluster)


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> None:
    """Our images, and stand-ins of engine and Redis, on both nodes."""
    kube_kept.load(cluster, None)


@pytest.fixture(scope="session")
def installed(helm: Helm, images: None) -> Helm:
    """The chart, installed as a user would: two operators in a namespace that enforces `restricted`."""
    helm.server.create_namespace(kube_chart.NAMESPACE, {"pod-security.kubernetes.io/enforce": "restricted"})
    helm.install({})
    return helm


@pytest.fixture(scope="session", params=["sidecar", "perNode"])
def served(request: pytest.FixtureRequest, cluster: Cluster, installed: Helm) -> Iterator[Served]:
    """A pool and a deployment of two real engines, in each placement in turn."""
    served = Served(cluster, request.param)
    served.start()
    yield served
    served.stop()
