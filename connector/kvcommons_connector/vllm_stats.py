"""The connector's counters in vLLM's own statistics and on its /metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from kvcommons_connector.stats import COUNTERS, LABELS, merged, split_name


class KVCommonsStats(KVConnectorStats):
    """What was added to the counters in one interval."""

    def reset(self) -> None:
        """Forget the interval."""
        self.data: dict[str, float] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """The sum with another process's interval."""
        self.data = merged(self.data, other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        """For vLLM's log line."""
        return {name.replace("|", " "): round(value, 6) for name, value in sorted(self.data.items())}

    def is_empty(self) -> bool:
        """True if nothing happened."""
        return not self.data


class KVCommonsPromMetrics(KVConnectorPromMetrics):
    """One Prometheus counter for each of COUNTERS, by engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        counter = metric_types[Counter]
        self._counters = {
            name: counter(
                name=f"kvcommons_connector_{name}",
                documentation=text,
                labelnames=[*labelnames, *([LABELS[name]] if name in LABELS else [])],
            )
            for name, text in COUNTERS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add one interval of one engine."""
        for key, value in transfer_stats_data.items():
            name, label, text = split_name(key)
            if name in self._counters:
                values = [*self.per_engine_labelvalues[engine_idx], *([text] if label else [])]
                self._counters[name].labels(*values).inc(value)
