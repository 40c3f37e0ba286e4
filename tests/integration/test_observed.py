"""What a real Prometheus makes of a pool at work: metrics as the catalogue says, dashboards that show something, alerts that come and go."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import document, screenshot
from kvcommons_operator.build.alerts import DEPLOYMENT_RULES, POOL_RULES
from node_process import until
from observed_queries import queries
from observed_run import NAMESPACE, Run, pool_at_work
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import Prometheus, page, prometheus_in, promtool

ROOT = Path(__file__).resolve().parents[2]
HERE = ("overview", "node", "router")
"""Those of the engines and of the operator are shown where there are some: tests/engine, tests/cluster."""
TURNS_MAX = 6
LABELS = {POOL_RULES: f'namespace="{NAMESPACE}"', DEPLOYMENT_RULES: f'namespace="{NAMESPACE}",service="chat"'}
WINDOW = re.compile(r"\[\d+[mh]\]")


def hurried(rule: dict[str, Any]) -> dict[str, Any]:
    """As it is shipped, but with seconds for minutes."""
    return {**rule, "expr": WINDOW.sub("[4s]", rule["expr"]), **({"for": "0s"} if "for" in rule else {})}


@pytest.fixture(scope="module")
def catalogue() -> dict[str, Any]:
    """The entries of .ci/metric_catalogue.py, by name."""
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        module = importlib.import_module("metric_catalogue")
    finally:
        sys.path.remove(str(ROOT / ".ci"))
    return {entry.name: entry for component in module.catalogue() for entry in component.entries}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Prometheus]]:
    """A pool at work, and a Prometheus that has scraped it; ended with the module."""
    folder = tmp_path_factory.mktemp("watched")
    with pool_at_work(folder) as run, prometheus_in(folder) as prometheus:
        rules = [hurried(rule.rule(labels)) for group, labels in LABELS.items() for rule in group]
        prometheus.start(run.targets, rules)
        run.work(0)
        until(lambda: len(prometheus.query("up == 1")) == len(run.targets), "everything is scraped")
        yield run, prometheus


def test_every_dashboard_shows_something(watched: tuple[Run, Prometheus]) -> None:
    """Each query of the dashboards of pool, nodes and routers returns a number while a pool is at work."""
    run, prometheus = watched
    asked = [(board, title, query) for board in HERE for title, query in queries(board)]
    assert len(asked) > 60
    silent = asked
    for turn in range(1, TURNS_MAX):
        run.work(turn)
        silent = [one for one in silent if not prometheus.query(one[2])]
        if not silent:
            return
    raise AssertionError("no data: " + "\n".join(f"{board}, {title}: {query}" for board, title, query in silent))


def test_what_is_exposed_is_what_the_catalogue_says(watched: tuple[Run, Prometheus], catalogue: dict[str, Any]) -> None:
    """Names, types and labels of live processes are those of docs/metrics.md, closed lists are closed, and Prometheus' own linter
    is content with all of it."""
    run, _ = watched
    for address, _ in run.targets:
        shown = page(address)
        assert promtool("check", "metrics", given=shown) == ""
        for metric in text_string_to_metric_families(shown):
            name = metric.name + ("_total" if metric.type == "counter" else "")
            if name.endswith("_created"):
                continue
            entry = catalogue[name]
            assert entry.kind == metric.type, name
            values = {label.name: label.values for label in entry.labels}
            for sample in metric.samples:
                labels = {label: value for label, value in sample.labels.items() if label != "le"}
                assert set(labels) <= set(values), name
                assert all(not values[label] or value in values[label] for label, value in labels.items()), sample
        assert shown.count("# TYPE kvcommons_") > 30


def test_the_web_page_shows_the_pool_and_why_a_request_missed(watched: tuple[Run, Prometheus], tmp_path: Path) -> None:
    """A browser shows replicas, nodes, figures and the last requests with the reason of what was missed; nothing it loads comes from
    elsewhere. With KVCOMMONS_SCREENSHOT a picture of it is kept there."""
    run, _ = watched
    run.work(TURNS_MAX)  # what is asked for twice is answered from the commons
    url = f"http://127.0.0.1:{run.port}/ui"
    shown = document(tmp_path, url)
    for name in (*(engine.name for engine in run.engines), *(node.name for node in run.nodes)):
        assert f">{name}</td>" in shown, name
    assert "not_found: no chunk of this prefix was here" in shown
    assert re.search(r"<b>[\d.]+ %</b><span>from the commons", shown)
    assert 'class="commons" stroke-width=' in shown
    assert "policy cost, 1 worker, index connected" in shown
    assert not re.search(r"(src|href)=.?https?:", shown)
    kept = Path(os.environ.get("KVCOMMONS_SCREENSHOT", tmp_path / "page.png"))
    screenshot(tmp_path, url, kept)


def test_alerts_come_with_their_faults_and_go_with_them(watched: tuple[Run, Prometheus]) -> None:
    """As the operator ships them, with seconds for minutes: Redis away, an engine that fails, a node killed, the router gone."""
    run, prometheus = watched
    faults = {"KvcommonsCacheNodeDown", "KvcommonsIndexUnreachable", "KvcommonsReplicaDown", "KvcommonsRouterDown"}
    until(lambda: not prometheus.firing() & faults, "all is well at first")
    run.redis.kill()
    until(lambda: "KvcommonsIndexUnreachable" in prometheus.firing(), "the index is missed")
    until(
        lambda: run.ask(1) == 200 and "KvcommonsRouterWithoutIndex" in prometheus.firing(), "the router misses it too"
    )
    run.engines[1].failing = True
    until(lambda: "KvcommonsReplicaDown" in prometheus.firing(), "an engine is missed")
    run.nodes[0].process.kill()
    until(lambda: "KvcommonsCacheNodeDown" in prometheus.firing(), "a node is missed")
    run.router.stop()
    until(lambda: "KvcommonsRouterDown" in prometheus.firing(), "the router is missed")
    run.mend()
    until(lambda: not prometheus.firing() & (faults | {"KvcommonsRouterWithoutIndex"}), "all is well again")
