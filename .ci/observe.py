"""What is made for whoever watches: docs/metrics.md, Grafana's dashboards, the operator's rules for Prometheus.

observe.py write      makes them
observe.py check      says what of them is not as it would be made, and what a reader would miss
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import metric_page
from dashboard_node import NODE
from dashboard_overview import OPERATOR, OVERVIEW
from dashboard_parts import made
from dashboard_router import CONNECTOR, ROUTER
from kvcommons_operator.build.alerts import ALERTS, OPERATOR_RULES

ROOT: Final = Path(__file__).resolve().parent.parent
CHART: Final = ROOT / "charts" / "kvcommons"
BOARDS: Final = (OVERVIEW, NODE, ROUTER, CONNECTOR, OPERATOR)
RUNBOOKS: Final = ROOT / "docs" / "runbooks.md"
SELECTOR: Final = "@SELECTOR@"
"""In the chart's rules: the labels that the operator is scraped with, which only helm knows."""


def texts() -> dict[Path, str]:
    """Every made file."""
    rules = [rule.rule(SELECTOR) for rule in OPERATOR_RULES]
    head = "# Made by `make observe` from kvcommons_operator/build/alerts.py.\n"
    boards = {CHART / "dashboards" / f"{board.name}.json": made(board) for board in BOARDS}
    return {
        ROOT / "docs" / "metrics.md": metric_page.page(),
        CHART / "files" / "operator-rules.yaml": head + yaml.safe_dump(rules, sort_keys=False, width=10_000),
        **boards,
    }


def write() -> None:
    for path, text in texts().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


def complaints() -> list[str]:
    """What is out of date, and alerts without a section that says what to do."""
    found = [
        f"{path.relative_to(ROOT)} is not as it would be made: make observe"
        for path, text in texts().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    known = {board.name for board in BOARDS}
    found += [
        f"{path.relative_to(ROOT)} is made by nothing"
        for path in sorted((CHART / "dashboards").glob("*.json"))
        if path.stem not in known
    ]
    told = {line[3:].strip() for line in RUNBOOKS.read_text(encoding="utf-8").splitlines() if line.startswith("## ")}
    names = {alert.name for alert in ALERTS}
    found += [f"docs/runbooks.md has no section {name}" for name in sorted(names - told)]
    found += [f"docs/runbooks.md has a section {name}, and there is no such alert" for name in sorted(told - names)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "check"])
    if parser.parse_args().what == "write":
        write()
    elif found := complaints():
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
