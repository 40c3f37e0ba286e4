"""docs/install.md as a stranger follows it: its commands, copied and pasted into a shell, on a cluster that `make cluster` keeps.

Minutes long (two engines, twice), so that `make soak` alone names this file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kube_binaries
import kube_cluster
import kube_kept
import pytest
import yaml
from kube_apiserver import free_port

ROOT = Path(__file__).resolve().parents[2]
KEEP = ROOT / "tests" / "kube_keep.py"
INSTALL = (ROOT / "docs" / "install.md").read_text()
STEP_SECONDS_MAX = 900
READY_LINE = "export KUBECONFIG="
# What a stranger puts in place of the page's own: the model that this cluster has.
MODEL, LOCAL_MODEL = "Qwen/Qwen3-0.6B", "smollm2"

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2_400)]


def blocks(heading: str) -> list[str]:
    """The shell commands under a heading, one text a block."""
    section = re.split(r"^## ", INSTALL.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


class Shell:
    """What a stranger types, in a checkout, with nothing but the cluster's own programs before the machine's."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.prefix = kube_kept.environment(folder)
        self.environment = {**os.environ, "TMPDIR": str(temporary)}
        self.environment.pop("KUBECONFIG", None)

    def __call__(self, text: str) -> str:
        """All of it printed; an error is one of the test."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{self.prefix}\n{text}"],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=STEP_SECONDS_MAX,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-6_000:]}\n{done.stderr[-6_000:]}"
        return done.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """One in which `make cluster` keeps a cluster elsewhere."""
    reason = kube_cluster.obstacle()
    if reason:
        pytest.skip(reason)
    kube_binaries.Binaries().bring(*kube_cluster.PROGRAMS, "helm")
    temporary = tmp_path / "t"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(KEEP.parent)}
    with subprocess.Popen([sys.executable, str(KEEP)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert any(line.startswith(READY_LINE) for line in process.stdout), "it ended before it was ready"
            yield Shell(next(temporary.glob("kvcommons-keep-*")), temporary)
        finally:
            process.terminate()
            process.wait(120)


def commands(heading: str, number: int = 0) -> str:
    """One of them."""
    return blocks(heading)[number]


def test_the_page_on_one_machine_from_an_empty_cluster_to_an_answer_and_back(shell: Shell, tmp_path: Path) -> None:
    """Every command as the page has it, in its order: install, two resources, a model that is Ready, a chat through the router by
    `helm test` and by hand, upgrade, both ways of uninstalling, and both other ways of installing."""
    assert commands("On one machine").strip() == "make cluster"
    told = shell(commands("On one machine", 1))
    assert "Succeeded" in told
    assert f"{kube_kept.NAMESPACE}/{kube_kept.NAME}" in told, "kvcommons status shows the deployment"
    assert "lease.coordination.k8s.io/kvcommons-operator" in shell(commands("2. The operator", 1))
    shell(f"cd {tmp_path}\n{commands('2. The operator', 2)}")
    assert yaml.safe_load((tmp_path / "kvcommons-root.yaml").read_text())["data"]
    the_page_s_resources_are_taken(shell, tmp_path)
    requests_are_answered(shell)
    shell(commands("When something is not right"))
    shell("kvcommons doctor")
    shell(commands("Upgrade"))
    told = shell(commands("Uninstall", 1))
    assert "deployment.apps/chat-router" in told, "routers go on without the operator"
    shell("\n".join(kube_kept.HELM))
    shell(commands("Uninstall"))
    assert shell("kubectl get crd -o name").count("kvcommons") == 0
    plain_manifests_install_it(shell)
    it_needs_no_rights_of_the_cluster(shell)


def the_page_s_resources_are_taken(shell: Shell, folder: Path) -> None:
    """Those of the page ask for a GPU and for the hub: the API server has a look at them."""
    section = INSTALL.partition("## 4. A pool and a model\n")[2]
    (folder / "chat.yaml").write_text(section.partition("```yaml\n")[2].partition("```")[0])
    apply = commands("4. A pool and a model").splitlines()[0]
    assert "inferencedeployment.kvcommons.io/chat" in shell(f"cd {folder}\n{apply} --dry-run=server")


def requests_are_answered(shell: Shell) -> None:
    """By `helm test`, and by hand: the same text twice."""
    by_test, by_hand = blocks("5. A request")
    assert 'router: "' in shell(by_test)
    port = str(free_port("127.0.0.1"))  # 8000 is free on a machine of a stranger's own
    by_hand = by_hand.replace("8000:", f"{port}:").replace("localhost:8000", f"localhost:{port}")
    assert '"choices"' in shell(f"{by_hand.replace(MODEL, LOCAL_MODEL)}\nkill $!")


def plain_manifests_install_it(shell: Shell) -> None:
    """By kubectl alone, with the images of this machine; and away again, as the page says."""
    shell(commands("Plain manifests").replace("charts/kustomize", f'"${kube_kept.VARIABLE}/kustomize"'))
    shell("kubectl --namespace kvcommons-system rollout status deployment/kvcommons-operator --timeout=180s")
    shell("kubectl --namespace kvcommons-system scale deployment/kvcommons-operator --replicas=0")
    shell("kvcommons operator --release")
    shell(f'kubectl delete -k "${kube_kept.VARIABLE}/kustomize" --timeout=180s')


def it_needs_no_rights_of_the_cluster(shell: Shell) -> None:
    """In namespaces of one's own, with CRDs that somebody else has applied."""
    shell("kubectl apply --server-side -k crds\nkubectl create namespace team-a\nkubectl create namespace team-a-batch")
    shell(f'{commands("Without cluster rights").rstrip()} --wait --values "${kube_kept.VARIABLE}/values.yaml"')
    shell("helm uninstall kvcommons --namespace team-a --wait")
