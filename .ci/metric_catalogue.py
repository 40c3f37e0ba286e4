"""Every metric of the product, read from the code that makes it: type, unit, labels and what bounds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kvcommons_connector.stats import COUNTERS, LABELS
from kvcommons_node.api.models import IndexStatus, PeerStatus, TierStatus
from kvcommons_node.metrics import NodeMetrics
from kvcommons_operator.metrics import ConditionNow, OperatorMetrics
from kvcommons_router.cells import Cells
from kvcommons_router.exposition import render
from kvcommons_router.metrics import AXES, MODELS_MAX, Layout, Names
from kvcommons_router.roster import Presence
from kvcommons_router.settings_instances import INSTANCES_MAX
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

UNITS: Final = ("seconds", "bytes", "tokens", "chunks", "shards", "slots", "slabs", "connections", "requests")
BARE: Final = "1"
"""The unit of what is counted and has no other."""
LE: Final = "le"


@dataclass(frozen=True)
class Label:
    """A label, the values that it may have where they are a closed list, and else in words what bounds them."""

    name: str
    values: tuple[str, ...] = ()
    bound: str = ""


@dataclass(frozen=True)
class Entry:
    """One metric, named as it is exposed and queried (a histogram without _bucket, _sum and _count)."""

    name: str
    kind: str
    help: str
    labels: tuple[Label, ...] = ()

    @property
    def unit(self) -> str:
        """From the name, where Prometheus has it."""
        words = self.name.removesuffix("_total").split("_")
        if "per" in words:
            return f"{words[words.index('per') - 1]}/{words[words.index('per') + 1]}"
        return next((unit for unit in UNITS if unit in words), BARE)


@dataclass(frozen=True)
class Component:
    """A process that shows metrics, and where."""

    name: str
    where: str
    entries: tuple[Entry, ...]


# What bounds the labels whose values no list in the code has.
OPEN: Final[dict[str, str]] = {
    "model": f"models that the router serves, {MODELS_MAX} at most; empty for requests of none",
    "replica": f"the router's instances by name, {INSTANCES_MAX} at most",
    "tier": "the tiers in the node's settings, and `peer`",
    "peer": "nodes of the pool that were asked for something",
    "kind": "kinds that the operator reads or writes",
    "verb": "get, list, watch, apply and the other verbs of the API",
    "status": "HTTP statuses that the API server answers with; 0 for none",
    "resource_namespace": "namespaces with resources of ours",
    "resource": "the resources of ours by name",
    "model_name": "vLLM's: the model that it serves",
    "engine": "vLLM's: the number of the data-parallel rank",
}
CLOSED: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("kvcommons_operator_reconciles_total", "kind"): ("KVCachePool", "InferenceDeployment", "InferenceRole"),
    ("kvcommons_operator_reconciles_total", "outcome"): ("done", "retried", "defect"),
    ("kvcommons_operator_reconcile_seconds", "kind"): ("KVCachePool", "InferenceDeployment", "InferenceRole"),
    ("kvcommons_operator_manifests_total", "outcome"): ("applied", "repaired", "skipped"),
    ("kvcommons_operator_fences_total", "outcome"): ("done", "no-node", "failed"),
    ("kvcommons_operator_condition", "kind"): ("KVCachePool", "InferenceDeployment", "InferenceRole"),
    ("kvcommons_operator_condition", "status"): ("True", "False", "Unknown"),
}
CONDITIONS: Final = "the types of conditions that docs/crds.md lists"
CONNECTOR_BOUND: Final = "a closed list in the code; docs/control.md and docs/vllm.md say what each reason means"


def catalogue() -> tuple[Component, ...]:
    """All of them, in the order of a request's way."""
    return (
        Component("router", "`/metrics` of the router, for all its workers", tuple(router())),
        Component("connector", "`/metrics` of vLLM, beside vLLM's own", tuple(connector())),
        Component("node", "`/metrics` of the cache node's control port", tuple(node())),
        Component("operator", "`/metrics` of the operator", tuple(operator())),
    )


def router() -> Iterator[Entry]:
    layout = Layout()
    shown = [family for family in layout.families if family.help]
    for family in shown:
        labels = [_label(family.name, AXES[family.axis], ())] if family.axis else []
        labels += [Label(name, values) for name, values in zip(family.labels, family.values, strict=True)]
        yield Entry(family.name, family.kind, family.help, tuple(labels))
    known = {family.name.removesuffix("_total") for family in shown}
    small = Layout(models_max=1, instances_max=1)
    presences = {presence.name.lower(): 0 for presence in Presence}
    page = render(small, Cells(1, small.columns), Names((), ((0, "x"),)), {0: True}, presences).decode()
    for metric in text_string_to_metric_families(page):
        if metric.name not in known:
            yield _entry(metric, {"replica": ()})


def connector() -> Iterator[Entry]:
    for name, text in COUNTERS.items():
        labels = [_label(name, "model_name", ()), _label(name, "engine", ())]
        if name in LABELS:
            labels.append(Label(LABELS[name], bound=CONNECTOR_BOUND))
        yield Entry(f"kvcommons_connector_{name}_total", "counter", text, tuple(labels))


class _Anything(dict[str, int]):
    """Counters of a core that has them all."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 1


def node() -> Iterator[Entry]:
    counters = _Anything()
    tiers = [TierStatus.model_construct(name="", health="serving", counters=counters)]
    peers = [PeerStatus.model_construct(name="", address="", usable=True, detail="", counters=counters)]
    index = IndexStatus(state="connected", detail="")
    metrics = NodeMetrics(lambda: counters, lambda: index, lambda: tiers, lambda: peers)
    for metric in metrics.registry.collect():
        yield _entry(metric, {"tier": (), "peer": ()} if "hit_chunks" not in metric.name else {})


def operator() -> Iterator[Entry]:
    metrics = OperatorMetrics()
    metrics.watch_queue(lambda: 0.0)
    metrics.watch_conditions(lambda: [ConditionNow("", "", "", "", "")])
    metrics.objects("", 0)
    metrics.request("", "", 0, 0.0)
    for one in (metrics.reconciles, metrics.applied, metrics.fences, metrics.reconcile_seconds):
        one.labels(*[""] * len(one._labelnames))
    for metric in metrics.registry.collect():
        if metric.name.startswith("kvcommons_"):
            yield _entry(metric)


def _entry(metric: Metric, open_labels: dict[str, tuple[str, ...]] | None = None) -> Entry:
    """From a collected family. Without `open_labels` no label's values are read from its samples."""
    name = metric.name + ("_total" if metric.type == "counter" else "")
    values: dict[str, dict[str, None]] = {}
    for sample in metric.samples:
        for label, value in sample.labels.items():
            values.setdefault(label, {})[value] = None
    labels = []
    for label, found in values.items():
        if label != LE:
            closed = open_labels is not None and label not in open_labels
            labels.append(_label(name, label, tuple(found) if closed else ()))
    return Entry(name, metric.type, metric.documentation, tuple(labels))


def _label(metric: str, name: str, values: Iterable[str]) -> Label:
    values = tuple(values) or CLOSED.get((metric, name), ())
    if values:
        return Label(name, values)
    return Label(name, bound=CONDITIONS if name == "condition" else OPEN[name])
