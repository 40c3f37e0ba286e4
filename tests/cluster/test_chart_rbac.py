"""The operator lives a whole life with exactly the chart's rules: nothing is refused, and no rule is there for nothing."""

from __future__ import annotations

from pathlib import Path

import kube_life
import pytest
from kube_binaries import Binaries


@pytest.mark.apiserver
@pytest.mark.timeout(600)
def test_the_operator_does_all_its_work_with_exactly_the_charts_rules(kube_binaries: Binaries, tmp_path: Path) -> None:
    """With a ClusterRole: no request is refused, and every right is used by the life of a pool and its deployments."""
    with kube_life.audited(tmp_path, kube_binaries) as server:
        kube_life.judge(server, kube_life.installed(server, {}), kube_life.GUESTS_BY_LABEL)
        kube_life.judge_release(server)
