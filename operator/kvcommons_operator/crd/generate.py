"""The files that are made from the models: CustomResourceDefinitions for kubectl and for the chart, and their reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from kvcommons_operator.crd.definitions import DEFINITIONS
from kvcommons_operator.crd.reference import reference

COMMAND: Final = "python -m kvcommons_operator.crd"
FOLDERS: Final = ("crds", "charts/kvcommons/files/crds")  # not crds/: helm never upgrades that folder
REFERENCE: Final = "docs/crds.md"
WIDTH: Final = 120


class _Plain(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no annotations
    """Writes the same thing twice rather than refer to it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(document: dict[str, Any]) -> str:
    """A document as stable YAML."""
    return str(yaml.dump(document, Dumper=_Plain, sort_keys=False, width=WIDTH, allow_unicode=True))


@functools.cache
def files() -> Mapping[str, str]:
    """Every generated file: path from the project's root -> content."""
    made: dict[str, str] = {}
    for definition in DEFINITIONS:
        text = f"# Made by {COMMAND} from the models; change those.\n" + to_yaml(definition.to_dict())
        for folder in FOLDERS:
            made[f"{folder}/{definition.model.PLURAL}.yaml"] = text
    made[REFERENCE] = reference()
    return made


def outdated(root: Path) -> list[str]:
    """Paths of generated files that are missing or differ from what the models say, and of others in folders of theirs."""
    made = files()
    differing = [
        path for path, text in made.items() if not (root / path).is_file() or (root / path).read_text() != text
    ]
    there = [found for folder in FOLDERS for found in (root / folder).glob("*.yaml")]
    foreign = [str(found.relative_to(root)) for found in there if str(found.relative_to(root)) not in made]
    return sorted(differing + foreign)


def write(root: Path) -> list[str]:
    """Writes what differs, and says what it wrote."""
    made = files()
    written = []
    for path in outdated(root):
        if path in made:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(made[path])
            written.append(path)
    return written
