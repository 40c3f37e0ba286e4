"""What is made from the chart: values.yaml and README.md from values.schema.json, and plain manifests; and the chart's checks.

chart.py write      values.yaml, README.md, and charts/kustomize (by helm)
chart.py check      says what of them is not as it would be made; then helm lint, and kubeconform on what helm renders
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kube

ROOT: Final = Path(__file__).resolve().parent.parent
CHART: Final = ROOT / "charts" / "kvcommons"
PLAIN: Final = ROOT / "charts" / "kustomize"
NAMESPACE: Final = "kvcommons-system"
KUBE_VERSION: Final = "1.29.0"  # the lowest that is supported
WIDTH: Final = 120
MADE: Final = "Made by `make chart`"
# The values that a check renders: between them every template and every branch.
CASES: Final = ROOT / "charts" / "cases"


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return found


def inner(node: dict[str, Any]) -> dict[str, Any]:
    """The values of a group; empty for a value."""
    found: dict[str, Any] = node.get("properties", {})
    return found


def compact(value: Any) -> str:
    """A default as YAML in one line (JSON is YAML)."""
    return json.dumps(value, ensure_ascii=False)


def values_lines(properties: dict[str, Any], indent: int) -> Iterator[str]:
    space = " " * indent
    for name, node in properties.items():
        for line in textwrap.wrap(node["description"], WIDTH - indent - 2):
            yield f"{space}# {line}"
        if inner(node):
            yield f"{space}{name}:"
            yield from values_lines(inner(node), indent + 2)
        else:
            yield f"{space}{name}: {compact(node['default'])}"


def values_text() -> str:
    head = f"# {MADE} from values.schema.json; change that. Give your own with --values FILE or --set NAME=VALUE.\n"
    return head + "\n".join(values_lines(inner(schema()), 0)) + "\n"


def rows(properties: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, node in properties.items():
        if inner(node):
            yield from rows(inner(node), f"{prefix}{name}.")
        else:
            shown = compact(node["default"])
            choice = f" One of {', '.join(map(str, node['enum']))}." if "enum" in node else ""
            yield f"{prefix}{name}", shown, node["description"] + choice


def readme_text() -> str:
    """README.md.in with the table of values in its place."""
    table = ["| value | default | meaning |", "|---|---|---|"]
    for name, default, meaning in rows(inner(schema())):
        table.append(f"| `{name}` | `{default}` | {meaning} |".replace("{version}", "\\{version\\}"))
    text = (ROOT / "charts" / "README.md.in").read_text(encoding="utf-8")
    return f"<!-- {MADE} from charts/README.md.in and values.schema.json; change those. -->\n" + text.replace(
        "@VALUES@", "\n".join(table)
    )


def helm(*words: str) -> str:
    try:
        program = kube.bring(["helm"])[0]
    except kube.NoKube as error:
        sys.exit(f"chart: {error}")
    done = subprocess.run([str(program), *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"chart: helm {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def rendered(*words: str) -> str:
    return helm("template", "kvcommons", str(CHART), "--namespace", NAMESPACE, "--kube-version", KUBE_VERSION, *words)


def plain_texts() -> dict[str, str]:
    """charts/kustomize: what helm would install, less what only helm knows of."""
    documents = [
        document
        for document in yaml.safe_load_all(rendered("--set", "crds.install=false", "--no-hooks"))
        if document is not None
    ]
    for document in documents:
        strip(document)
    manifests = "".join(f"---\n{yaml.safe_dump(document, sort_keys=False, width=WIDTH)}" for document in documents)
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")},
        },
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": ["namespace.yaml", "../../crds", "operator.yaml"],
    }
    head = f"# {MADE} from the chart.\n"
    return {
        "kustomization.yaml": head + yaml.safe_dump(kustomization, sort_keys=False),
        "namespace.yaml": head + yaml.safe_dump(namespace, sort_keys=False),
        "operator.yaml": head + manifests,
    }


def strip(document: dict[str, Any]) -> None:
    """Without helm's own labels."""
    templates = [document, document.get("spec", {}).get("template", {})]
    for holder in templates:
        labels = holder.get("metadata", {}).get("labels", {})
        labels.pop("helm.sh/chart", None)
        if "app.kubernetes.io/managed-by" in labels:
            labels["app.kubernetes.io/managed-by"] = "kustomize"


def made() -> dict[Path, str]:
    """Every made file. helm renders by values.yaml: that one is first."""
    files = {CHART / "values.yaml": values_text(), CHART / "README.md": readme_text()}
    for path, text in files.items():
        if path.name == "values.yaml" and (not path.exists() or path.read_text(encoding="utf-8") != text):
            return files
    return {**files, **{PLAIN / name: text for name, text in plain_texts().items()}}


def write() -> None:
    for _ in range(2):  # the second time with the values of the first
        for path, text in made().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
                print(f"wrote {path.relative_to(ROOT)}")


def outdated() -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for path, text in made().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def crd_schemas(folder: Path) -> None:
    """Our own kinds' schemas, as kubeconform reads them."""
    for path in (ROOT / "crds").glob("*.yaml"):
        crd = yaml.safe_load(path.read_text(encoding="utf-8"))
        if crd.get("kind") != "CustomResourceDefinition":
            continue
        for version in crd["spec"]["versions"]:
            kind = crd["spec"]["names"]["kind"].lower()
            target = folder / f"{kind}-{crd['spec']['group'].partition('.')[0]}-{version['name']}.json"
            target.write_text(json.dumps(version["schema"]["openAPIV3Schema"]))


def conform(text: str) -> str:
    """What kubeconform complains of, or nothing."""
    program = kube.bring(["kubeconform"])[0]
    with tempfile.TemporaryDirectory() as folder:
        crd_schemas(Path(folder))
        template = "{{.ResourceKind}}{{.KindSuffix}}.json"
        bundled = CASES / "schemas" / template
        command = [str(program), "-strict", "-summary", "-output", "json", "-schema-location", str(bundled)]
        command += ["-schema-location", str(Path(folder) / template), "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def check() -> None:
    complaints = [f"{path} is not as it would be made: make chart" for path in outdated()]
    for case in sorted(CASES.glob("*.yaml")):
        helm("lint", "--strict", "--quiet", "--kube-version", KUBE_VERSION, str(CHART), "--values", str(case))
        complaint = conform(rendered("--values", str(case)))
        complaints += [f"{case.name}: {complaint}"] if complaint else []
    for path in (PLAIN / "operator.yaml", *sorted((ROOT / "docs" / "examples").glob("*.yaml"))):
        complaint = conform(path.read_text(encoding="utf-8"))
        complaints += [f"{path.name}: {complaint}"] if complaint else []
    if complaints:
        sys.exit("\n".join(complaints))
    version = re.search(r"^version = \"(.+)\"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    if version is None or chart["appVersion"] != version.group(1):
        sys.exit(f"chart: appVersion {chart['appVersion']} is not the project's version")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "check"])
    if parser.parse_args().what == "write":
        write()
    else:
        check()


if __name__ == "__main__":
    main()
