"""What an operator may do, by the chart's rules, and what it did, by the API server's audit log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

VERBS_OF_APPLY = ("create", "patch")


class Right(NamedTuple):
    """One thing that may be done: of a rule, or of a request."""

    scope: str
    """The namespace; empty for the whole cluster."""
    group: str
    resource: str
    """With its subresource, as in a rule."""
    verb: str
    name: str = ""
    """Of a rule for certain objects."""


def granted(manifests: Iterable[Mapping[str, Any]]) -> set[Right]:
    """Every single right in Roles and ClusterRoles."""
    found = set()
    for manifest in manifests:
        if manifest["kind"] not in ("Role", "ClusterRole"):
            continue
        scope = manifest["metadata"].get("namespace", "")
        for rule in manifest["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        for name in rule.get("resourceNames", [""]):
                            found.add(Right(scope, group, resource, verb, name))
    return found


def requests(log: Path, user: str) -> Iterator[dict[str, Any]]:
    """Requests of a user for resources, as they ended. A watch is told twice; the last line of all may be half written."""
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            event = json.loads(line)
            if event["user"]["username"] == user and event.get("objectRef", {}).get("resource"):
                yield event


def refused(log: Path, user: str) -> list[str]:
    """What the API server forbade."""
    return [
        f"{event['verb']} {event['requestURI']}"
        for event in requests(log, user)
        if event.get("responseStatus", {}).get("code") == 403
    ]


def used(log: Path, user: str) -> set[Right]:
    """What was asked for. An apply that made its object used the right to create as well."""
    found = set()
    for event in requests(log, user):
        about, code = event["objectRef"], event.get("responseStatus", {}).get("code", 0)
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        verbs = VERBS_OF_APPLY if event["verb"] == "patch" and code == 201 else (event["verb"],)
        for verb in verbs:
            found.add(
                Right(about.get("namespace", ""), about.get("apiGroup", ""), resource, verb, about.get("name", ""))
            )
    return found


def covers(rule: Right, request: Right) -> bool:
    """Whether a request is one that a rule is for."""
    if rule[1:4] != request[1:4]:
        return False
    return rule.scope in ("", request.scope) and rule.name in ("", request.name)


def unused(rules: Iterable[Right], done: Iterable[Right]) -> list[Right]:
    """Rules that no request needed."""
    done = list(done)
    return sorted(rule for rule in rules if not any(covers(rule, request) for request in done))
