"""Alerts as promtool, which is Prometheus' own code, understands them."""

from __future__ import annotations

from pathlib import Path

import yaml
from alert_cases import CASES, SCOPES, promtool_test
from kvcommons_operator.build.alerts import ALERTS
from prometheus_server import promtool


def rules_file(folder: Path) -> Path:
    """All rules, for the labels that the cases have."""
    rules = [rule.rule(labels) for rules, labels in SCOPES for rule in rules]
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    return file


def test_every_alert_has_a_case_and_every_name_is_unique() -> None:
    """An alert that nothing shows to be raised by its fault would be a promise."""
    names = [alert.name for alert in ALERTS]
    assert len(names) == len(set(names))
    assert set(CASES) == set(names)


def test_prometheus_takes_all_rules(tmp_path: Path) -> None:
    """promtool finds nothing wrong with any expression, duration or name, and no rule twice."""
    said = promtool("check", "rules", "--lint=all", "--lint-fatal", str(rules_file(tmp_path)))
    assert f"{sum(len(rules) for rules, _ in SCOPES)} rules found" in said


def test_every_alert_is_raised_by_its_fault_and_goes_with_it(tmp_path: Path) -> None:
    """Silent for half an hour of health, raised with its labels during an hour of the fault, silent again after it."""
    rules = rules_file(tmp_path)
    tests = [promtool_test(name, case) for name, case in CASES.items()]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))


def test_alerts_say_what_they_mean() -> None:
    """Each has one of the two severities that the runbooks speak of, a time in minutes, and a sentence."""
    for alert in ALERTS:
        assert alert.severity in ("warning", "critical"), alert.name
        assert alert.after.endswith("m"), alert.name
        assert alert.summary.endswith("."), alert.name
