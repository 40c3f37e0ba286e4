"""What dashboards are made of: panels in rows, as data, and how Grafana's own SDK makes JSON of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="$datasource")
TAG: Final = "kvcommons"
GRAPH_WIDTH, GRAPH_HEIGHT = 8, 8
STAT_WIDTH, STAT_HEIGHT = 4, 4
RATE: Final = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One question, and the queries that answer it: (PromQL, legend)."""

    title: str
    unit: str
    """Grafana's name of it."""
    text: str
    """What one sees in it, for whoever does not know the metric."""
    queries: tuple[tuple[str, str], ...]
    kind: str = "graph"
    """graph, stack, stat or table."""


@dataclass(frozen=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard. `variables`: name -> (label, PromQL or a text's default)."""

    name: str
    title: str
    text: str
    rows: tuple[Row, ...]
    variables: dict[str, tuple[str, str]] = field(default_factory=dict)


def _queries(panel: Panel) -> list[prometheus.Dataquery]:
    found = []
    for number, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        if panel.kind == "table":
            query = query.instant().format(PromQueryFormat.TABLE)
        found.append(query.instant() if panel.kind == "stat" else query)
    return found


def _graph(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .span(GRAPH_WIDTH)
        .height(GRAPH_HEIGHT)
        .line_width(1)
        .fill_opacity(30 if panel.kind == "stack" else 8)
        .tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI))
    )
    if panel.kind == "stack":
        made = made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    for query in _queries(panel):
        made = made.with_target(query)
    return made


def _stat(panel: Panel) -> stat.Panel:
    made = stat.Panel().title(panel.title).description(panel.text).datasource(SOURCE).unit(panel.unit)
    made = made.span(STAT_WIDTH).height(STAT_HEIGHT)
    made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    for query in _queries(panel):
        made = made.with_target(query)
    return made


def _table(panel: Panel) -> table.Panel:
    made = table.Panel().title(panel.title).description(panel.text).datasource(SOURCE).unit(panel.unit)
    made = made.span(3 * GRAPH_WIDTH).height(GRAPH_HEIGHT)
    for query in _queries(panel):
        made = made.with_target(query)
    return made


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable | dashboard.TextBoxVariable:
    if not query.startswith("label_values"):
        return dashboard.TextBoxVariable(name).label(label).default_value(query)
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def made(board: Board) -> str:
    """The dashboard as JSON text."""
    page = (
        dashboard.Dashboard(board.title)
        .uid(f"{TAG}-{board.name}")
        .description(board.text)
        .tags([TAG])
        .editable()
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink(TAG)
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for name, (label, query) in board.variables.items():
        page = page.with_variable(_variable(name, label, query))
    for row in board.rows:
        page = page.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            make = {"stat": _stat, "table": _table}.get(panel.kind, _graph)
            page = page.with_panel(make(panel))
    numbered = page.build()
    for number, one in enumerate(numbered.panels or [], 1):
        one.id_val = number
    return JSONEncoder(sort_keys=True, indent=1).encode(numbered) + "\n"
