"""Dashboards and alerts speak of metrics that there are, by labels that they have."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from kvcommons_operator.build.alerts import DEPLOYMENT_RULES, ENGINE_RULES, OPERATOR_RULES, POOL_RULES, Alert
from observed_queries import BOARDS, queries

CI = Path(__file__).resolve().parents[2] / ".ci"
SELECTOR = re.compile(r"(kvcommons_[a-z0-9_]+)\{([^}]*)\}")
NAME = re.compile(r"kvcommons_[a-z0-9_]+")
MATCHER = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
OF_TARGETS = frozenset({"namespace", "service", "pod", "instance", "container"})
"""What Prometheus says of where it read."""
RULES = [
    (rule.name, rule.rule('namespace="n",service="s"')["expr"])
    for rules in (POOL_RULES, DEPLOYMENT_RULES, ENGINE_RULES, OPERATOR_RULES)
    for rule in rules
]
ASKED = [
    (f"{file.stem}: {title}", query) for file in sorted(BOARDS.glob("*.json")) for title, query in queries(file.stem)
]


@pytest.fixture(scope="module")
def catalogue() -> dict[str, Any]:
    """Entries by every name under which something of them can be queried."""
    sys.path.insert(0, str(CI))
    try:
        module = importlib.import_module("metric_catalogue")
    finally:
        sys.path.remove(str(CI))
    found = {}
    for component in module.catalogue():
        for entry in component.entries:
            parts = ("_bucket", "_sum", "_count") if entry.kind == "histogram" else ("",)
            found.update({entry.name + part: entry for part in parts})
    return found


def test_every_query_is_of_a_metric_that_there_is(catalogue: dict[str, Any]) -> None:
    """Of all dashboards, also of those that need an engine or an operator to show something, and of all rules."""
    assert len(ASKED) > 100
    assert {board.partition(":")[0] for board, _ in ASKED} == {"engines", "node", "operator", "overview", "router"}
    for where, query in ASKED + RULES:
        for name in NAME.findall(query):
            assert name in catalogue, f"{where}: {name}"


def test_every_query_chooses_by_labels_that_the_metric_has(catalogue: dict[str, Any]) -> None:
    """Its own, or those of the target."""
    for where, query in ASKED + RULES:
        for name, matchers in SELECTOR.findall(query):
            known = OF_TARGETS | {label.name for label in catalogue[name].labels}
            assert set(MATCHER.findall(matchers)) <= known, f"{where}: {name}{{{matchers}}}"


def test_the_unit_of_a_metric_is_in_its_name(catalogue: dict[str, Any]) -> None:
    """Times and sizes are in base units, counters end in _total, and nothing else does."""
    for entry in catalogue.values():
        words = entry.name.removesuffix("_total").split("_")
        assert not {"ms", "milliseconds", "microseconds", "us", "kib", "mib", "kb", "mb"} & set(words), entry.name
        assert entry.name.endswith("_total") == (entry.kind == "counter"), entry.name
        assert entry.help.strip(), entry.name
        assert all(label.values or label.bound for label in entry.labels), entry.name


def test_alerts_and_records_do_not_share_names() -> None:
    """A recorded series says level, what and operation; an alert is one word."""
    for rules in (POOL_RULES, DEPLOYMENT_RULES, ENGINE_RULES, OPERATOR_RULES):
        for rule in rules:
            assert rule.name.startswith("Kvcommons") if isinstance(rule, Alert) else rule.name.count(":") == 2
