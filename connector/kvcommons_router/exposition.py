"""How the router's metrics are written out for Prometheus."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from kvcommons_router.cells import Cells
from kvcommons_router.metrics import PREFIX, Family, Layout, Names


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(pairs: Iterable[tuple[str, str]], extra: str = "") -> str:
    parts = [f'{name}="{_escape(value)}"' for name, value in pairs]
    if extra:
        parts.append(extra)
    return "{" + ",".join(parts) + "}" if parts else ""


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
        if family.name.startswith(PREFIX + "_"):
            continue
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        always = not family.labels or family.kind == "gauge" or family.axis == "instance"
        combinations = family.combinations()
        for first, own in family.blocks(named):
            totals = cells.totals(first, family.block)
            for index, others in enumerate(combinations):
                labels = own + others
                part = totals[index * family.stride : (index + 1) * family.stride]
                if family.buckets:
                    if own != (("model", ""),) or any(part):
                        _histogram_lines(lines, family, labels, part)
                elif part[0] or always:
                    lines.append(f"{family.name}{_labels(labels)} {_number(part[0] * family.scale)}")
    name = PREFIX + "instance_up"
    lines.append(f"# HELP {name} Whether an instance gets requests: its checks succeed and it is not left out.")
    lines.append(f"# TYPE {name} gauge")
    for position, instance in names.instances:
        lines.append(f'{name}{{instance="{_escape(instance)}"}} {int(up.get(position, False))}')
    name = PREFIX + "instances"
    lines.append(f"# HELP {name} Instances, by whether they get requests, are not ready, or are leaving.")
    lines.append(f"# TYPE {name} gauge")
    lines.extend(f'{name}{{state="{state}"}} {count}' for state, count in presences.items())
    return ("\n".join(lines) + "\n").encode("utf-8")


def _histogram_lines(
    lines: list[str], family: Family, labels: tuple[tuple[str, str], ...], cells: Sequence[int]
) -> None:
    running = 0
    for bound, count in zip(family.buckets, cells, strict=False):
        running += count
        label = _labels(labels, f'le="{bound:g}"')
        lines.append(f"{family.name}_bucket{label} {running}")
    running += cells[len(family.buckets)]
    label = _labels(labels, 'le="+Inf"')
    lines.append(f"{family.name}_bucket{label} {running}")
    lines.append(f"{family.name}_sum{_labels(labels)} {_number(cells[-1] * family.scale)}")
    lines.append(f"{family.name}_count{_labels(labels)} {running}")
