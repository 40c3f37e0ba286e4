"""What the dashboards ask Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path

BOARDS = Path(__file__).resolve().parents[1] / "charts" / "kvcommons" / "dashboards"
VARIABLES = {"$__rate_interval": "8s", "$__range": "1m", "$gpus": "2"}
OF_THEM_ALL = re.compile(r"\$\w+")


def queries(board: str) -> list[tuple[str, str]]:
    """(panel, PromQL) of a dashboard, with everything chosen in its variables."""
    found = []
    for panel in json.loads((BOARDS / f"{board}.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], OF_THEM_ALL.sub(".*", expression)))
    return found
