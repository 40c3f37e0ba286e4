"""A real Prometheus, and promtool: Debian's package `prometheus` has both."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kvcommons_core.redis_server import free_port
from node_process import until

WHERE = "no {}: apt-get install -y --no-install-recommends prometheus"
INTERVAL = "500ms"
TOOL_SECONDS_MAX = 60


def program(name: str) -> str:
    """Its path; the test is skipped where the machine has none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(WHERE.format(name))
    return found


def promtool(*words: str, given: str = "") -> str:
    """What promtool says; its refusal is the test's failure."""
    done = subprocess.run(
        [program("promtool"), *words],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=TOOL_SECONDS_MAX,
    )
    assert done.returncode == 0, f"promtool {' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def page(address: str) -> str:
    """What a target shows."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        found: bytes = answer.read()
        return found.decode()


class Prometheus:
    """A server that scrapes and evaluates twice a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, targets: Sequence[tuple[str, Mapping[str, str]]], rules: Sequence[Mapping[str, Any]] = ()) -> None:
        """:param targets: (address, the labels that Prometheus' operator would have given it)."""
        jobs = [{"targets": [address], "labels": dict(labels)} for address, labels in targets]
        config: dict[str, Any] = {
            "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
            "scrape_configs": [{"job_name": "kvcommons", "static_configs": jobs}],
        }
        if rules:
            groups = {"groups": [{"name": "rules", "rules": list(rules)}]}
            (self.folder / "rules.yaml").write_text(yaml.safe_dump(groups))
            config["rule_files"] = [str(self.folder / "rules.yaml")]
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        words = [f"--config.file={self.folder}/prometheus.yaml", f"--storage.tsdb.path={self.folder}/data"]
        words += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        with (self.folder / "prometheus.log").open("ab") as log:
            self.process = subprocess.Popen([program("prometheus"), *words], stdout=log, stderr=log)
        until(self.ready, "Prometheus is ready")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "prometheus.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The instant answer: labels and value of each sample that is a number."""
        found = self.ask("query", query=expression)["result"]
        samples = [(one["metric"], float(one["value"][1])) for one in found]
        return [(labels, value) for labels, value in samples if not math.isnan(value)]

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        found = self.ask("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}


@contextmanager
def prometheus_in(folder: Path) -> Iterator[Prometheus]:
    server = Prometheus(folder)
    try:
        yield server
    finally:
        server.stop()
