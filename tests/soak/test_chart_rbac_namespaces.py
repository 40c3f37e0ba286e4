"""The other mode of the chart's rules: Roles in two namespaces, and nothing of the cluster."""

from __future__ import annotations

from pathlib import Path

import kube_life
import pytest
from kube_binaries import Binaries


@pytest.mark.apiserver
@pytest.mark.timeout(900)
def test_the_operator_lives_with_roles_in_its_namespaces_alone(tmp_path: Path) -> None:
    """No request leaves the two namespaces, none is refused, and every right in each of them is used."""
    with kube_life.audited(tmp_path, Binaries()) as server:
        values = {"rbac": {"scope": "namespace"}, "watchNamespaces": list(kube_life.TEAMS)}
        manifests = kube_life.installed(server, values)
        assert not [one for one in manifests if one["kind"].startswith("ClusterRole")]
        kube_life.judge(server, manifests, kube_life.GUESTS_BY_NAME)
        kube_life.judge_release(server)
