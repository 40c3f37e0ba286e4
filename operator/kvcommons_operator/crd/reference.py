"""docs/crds.md: every field of every kind, made from the same schemas as the CustomResourceDefinitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from kvcommons_operator.api import API_VERSION, GROUP
from kvcommons_operator.api.unbuilt import DEPLOYMENT_GAPS, POOL_GAPS, REASON, Gap
from kvcommons_operator.crd.definitions import CATEGORY, DEFINITIONS, KUBERNETES_MINOR_MIN, Definition

SHARED: Final = (
    "resources",
    "env",
    "tolerations",
    "affinity",
    "topologySpreadConstraints",
    "securityContext",
    "containerSecurityContext",
    "volumes",
    "volumeMounts",
)
"""Fields that mean the same wherever they are, and are told once."""
LINK: Final = "link"
HEAD: Final = f"""# Resources

Made from the models by `python -m kvcommons_operator.crd`; `kubectl explain ifd.spec.routing` shows the same on a cluster.

| | |
| --- | --- |
| API | `{API_VERSION}` |
| Kubernetes | 1.{KUBERNETES_MINOR_MIN} or newer |
| all at once | `kubectl get {CATEGORY}` |
| examples | [docs/examples](examples) |

In the tables: **bold** is required; a name with `[]` is of each item of a list, with `[*]` of each value of a map. "Rules" are checked by
the API server, so `kubectl apply` says at once what is wrong.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, _not_built()]
    shared: dict[str, Mapping[str, Any]] = {}
    for definition in DEFINITIONS:
        parts.append(_kind(definition, shared))
    parts.append(_pods(shared))
    return "\n".join(parts).rstrip("\n") + "\n"


def _not_built() -> str:
    lines = [
        "## Accepted, but not built yet",
        "",
        f"A resource that asks for a refused one gets the condition `Accepted=False` with reason `{REASON}` and changes nothing; the others",
        "are named in the message of `Accepted`.",
        "",
        "| kind | field | what happens |",
        "| --- | --- | --- |",
    ]
    gaps: tuple[tuple[str, tuple[Gap, ...]], ...] = (
        ("KVCachePool", POOL_GAPS),
        ("InferenceDeployment", DEPLOYMENT_GAPS),
    )
    for kind, table in gaps:
        lines.extend(f"| {kind} | `{gap.field}` | {gap.verdict.value.lower()}: {_cell(gap.message)} |" for gap in table)
    return "\n".join([*lines, ""])


def _kind(definition: Definition, shared: dict[str, Mapping[str, Any]]) -> str:
    schema = definition.to_dict()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    lines = [
        f"## {definition.model.KIND}",
        "",
        schema["description"],
        "",
        f"`kubectl get {definition.short_name}`, `{definition.model.PLURAL}.{GROUP}`"
        + (", with `kubectl scale`" if definition.scale else ""),
        "",
        *_rules(schema),
    ]
    for part in ("spec", "status"):
        lines.append(f"### {definition.model.KIND}.{part}")
        lines.append("")
        lines.extend(_table(_without(schema["properties"][part], shared)))
    return "\n".join(lines)


def _without(schema: Mapping[str, Any], shared: dict[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The schema with a link in place of what is told once; what that is goes to `shared`."""
    bare = dict(schema)
    if "properties" in bare:
        properties: dict[str, Any] = {}
        for name, part in bare["properties"].items():
            if name in SHARED:
                shared.setdefault(name, part)
                link = f"[{name}](#{name.lower()})"
                properties[name] = {"description": part["description"], LINK: link}
            else:
                properties[name] = _without(part, shared)
        bare["properties"] = properties
    if "items" in bare:
        bare["items"] = _without(bare["items"], shared)
    return bare


def _pods(shared: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["## Parts of pods", "", "They mean what they mean in Kubernetes' own pods.", ""]
    for name in SHARED:
        lines.extend([f"### {name}", "", *_table(shared[name], name)])
    return "\n".join(lines)


def _table(schema: Mapping[str, Any], path: str = "") -> list[str]:
    lines = ["| field | type | default | what it is |", "| --- | --- | --- | --- |"]
    lines.extend(_row(*field) for field in _walk(schema, path))
    rules = list(_all_rules(schema, path))
    if rules:
        lines.extend(["", "Rules:", "", *rules])
    return [*lines, ""]


def _walk(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    required = schema.get("required", [])
    for name, part in schema.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        yield here, part, name in required
        if LINK not in part:
            yield from _walk(part, here)
    if "items" in schema:
        yield from _walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from _walk(schema["additionalProperties"], f"{path}[*]")


def _row(path: str, schema: Mapping[str, Any], required: bool) -> str:
    name = f"**`{path}`**" if required else f"`{path}`"
    default = schema.get("default")  # those of objects are told field by field
    if isinstance(default, dict):
        default = None
    shown = (
        ""
        if default in (None, [], "")
        else f"`{_cell(str(default).lower() if isinstance(default, bool) else default)}`"
    )
    return f"| {name} | {_cell(_type(schema))} | {shown} | {_cell(schema.get('description', ''))} |"


def _type(schema: Mapping[str, Any]) -> str:
    if LINK in schema:
        return str(schema[LINK])
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in schema:
        return " \\| ".join(f"`{value if value != '' else chr(34) * 2}`" for value in schema["enum"])
    kind = str(schema["type"])
    if kind == "array":
        return f"list of {_type(schema['items'])}, at most {schema['maxItems']}"
    if "additionalProperties" in schema:
        return f"map of {_type(schema['additionalProperties'])}, at most {schema['maxProperties']}"
    if kind == "integer" and "minimum" in schema and "maximum" in schema:
        return f"integer, {schema['minimum']} to {schema['maximum']}"
    return kind


def _rules(schema: Mapping[str, Any]) -> list[str]:
    told = [f"- {_plain(rule['message'])}" for rule in schema.get("x-kubernetes-validations", [])]
    return [*told, ""] if told else []


def _all_rules(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Rules of a schema and of all beneath it, but those that every map has."""
    for rule in schema.get("x-kubernetes-validations", []) if LINK not in schema else ():
        if not rule["rule"].startswith("self.all(key, key.size() <="):
            yield f"- {f'`{path}`: ' if path else ''}{_plain(rule['message'])}"
    for name, part in schema.get("properties", {}).items():
        yield from _all_rules(part, f"{path}.{name}".lstrip("."))
    for child, suffix in (("items", "[]"), ("additionalProperties", "[*]")):
        if child in schema:
            yield from _all_rules(schema[child], path + suffix)


def _cell(text: object) -> str:
    return _plain(str(text)).replace("|", "\\|") if "\\|" not in str(text) else str(text)


def _plain(text: str) -> str:
    return " ".join(text.split())
