"""How the router's metrics are written out for Prometheus."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from kvcommons_router.cells import Cells
from kvcommons_router.metrics import AXES, PREFIX, Family, Layout, Names


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return ",".join([f'{name}="{_escape(value)}"' for name, value in pairs])


def _labels(*parts: str) -> str:
    """Labels in their braces; nothing where there are none."""
    inner = ",".join([part for part in parts if part])
    return "{" + inner + "}" if inner else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def render(layout: Layout, cells: Cells, names: Names, up: Mapping[int, bool], presences: Mapping[str, int]) -> bytes:
    """All workers' numbers as Prometheus' text format. Label values that never occurred are left out of counters.

    :param up: by the position of an instance, whether it is known to serve.
    :param presences: how many instances there are, by where they stand.
    """
    lines: list[str] = []
    named = dataclasses.replace(names, models=(*names.models, (layout.other_model, "")))
    for family in layout.families:
        if not family.name.startswith(PREFIX + "_"):
            _describe(lines, family.name, family.kind, family.help)
            _family_lines(lines, family, cells, named)
    name = PREFIX + "instance_up"
    _describe(lines, name, "gauge", "Whether an instance gets requests: its checks succeed and it is not left out.")
    for position, instance in names.instances:
        lines.append(f'{name}{{{AXES["instance"]}="{_escape(instance)}"}} {int(up.get(position, False))}')
    name = PREFIX + "instances"
    _describe(lines, name, "gauge", "Instances, by whether they get requests, are not ready, or are leaving.")
    lines.extend(f'{name}{{state="{state}"}} {count}' for state, count in presences.items())
    return ("\n".join(lines) + "\n").encode("utf-8")


def _describe(lines: list[str], name: str, kind: str, text: str) -> None:
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")


def _family_lines(lines: list[str], family: Family, cells: Cells, names: Names) -> None:
    always = not family.labels or family.kind == "gauge" or family.axis == "instance"
    combinations = [_pairs(combination) for combination in family.combinations()]
    bounds = [f'le="{bound:g}"' for bound in family.buckets]
    for first, own in family.blocks(names):
        totals, mine = cells.totals(first, family.block), _pairs(own)
        for index, others in enumerate(combinations):
            if family.buckets:
                part = totals[index * family.stride : (index + 1) * family.stride]
                if own != (("model", ""),) or any(part):
                    _histogram_lines(lines, family, ",".join(filter(None, (mine, others))), bounds, part)
            elif totals[index] or always:
                lines.append(f"{family.name}{_labels(mine, others)} {_number(totals[index] * family.scale)}")


def _histogram_lines(
    lines: list[str], family: Family, labels: str, bounds: Sequence[str], cells: Sequence[int]
) -> None:
    running = 0
    begin = f"{family.name}_bucket{{{labels}," if labels else f"{family.name}_bucket{{"
    for bound, count in zip(bounds, cells, strict=False):
        running += count
        lines.append(f"{begin}{bound}}} {running}")
    running += cells[len(bounds)]
    lines.append(f'{begin}le="+Inf"}} {running}')
    lines.append(f"{family.name}_sum{_labels(labels)} {_number(cells[-1] * family.scale)}")
    lines.append(f"{family.name}_count{_labels(labels)} {running}")
