"""docs/metrics.md: the catalogue of metrics as a page."""

from __future__ import annotations

from typing import Final

from metric_catalogue import Component, Entry, Label, catalogue

HEAD: Final = """<!-- Made by `make observe` from the code that makes the metrics; change that. -->
# Metrics

Every process shows its metrics to Prometheus at `/metrics`, those of the router without a key, those of a cache node and of the operator
on ports of their own. Where they are scraped from, in Kubernetes: [operator.md](operator.md) and the chart's `metrics`. Dashboards for
Grafana are in `charts/kvcommons/dashboards`, alerts with what to do about each in [runbooks.md](runbooks.md).

Names follow Prometheus' conventions: base units, `_total` on counters. Histograms show `_bucket`, `_sum` and `_count`. A label's values
are a closed list, or bounded by what the last column says. Texts, salts, tenants and request ids are in no label. The index is seen from both
its sides: `kvcommons_router_index_*` and `kvcommons_node_index_*`.
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def labelled(label: Label) -> str:
    if label.values:
        return f"`{label.name}`: " + ", ".join(f"`{value}`" if value else "(empty)" for value in label.values)
    return f"`{label.name}`: {label.bound}"


def row(entry: Entry) -> str:
    labels = "; ".join(labelled(label) for label in entry.labels)
    return f"| `{entry.name}` | {entry.kind} | {entry.unit} | {cell(entry.help)} | {cell(labels)} |"


def section(component: Component) -> str:
    head = f"\n## {component.name.capitalize()}\n\n{len(component.entries)} metrics, at {component.where}.\n\n"
    table = ["| metric | type | unit | what it says | labels |", "| --- | --- | --- | --- | --- |"]
    return head + "\n".join([*table, *(row(entry) for entry in component.entries)]) + "\n"


def page() -> str:
    return HEAD + "".join(section(component) for component in catalogue())
