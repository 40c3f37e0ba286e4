"""The resources on a real API server: their definitions established, and what it says to a manifest."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from crd_case import Spec, body, path_of
from kube_client import ApiError, Client
from kube_process import wait_for
from kvcommons_operator.api import GROUP, VERSION, Resource
from kvcommons_operator.crd.definitions import definitions

ESTABLISHED_SECONDS_MAX = 30.0
APPLY = "application/apply-patch+yaml"


def establish(server: Client) -> None:
    """Applies the definitions and waits until they are served, together with their documentation."""
    for name, crd in definitions().items():
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        server.request("PATCH", f"{path}?fieldManager=test&force=true&fieldValidation=Strict", crd, APPLY)
    wait_for(
        lambda: all(_established(server, name) for name in definitions()), "CRDs established", ESTABLISHED_SECONDS_MAX
    )
    wait_for(lambda: _explained(server), "CRDs explained", ESTABLISHED_SECONDS_MAX)


def _established(server: Client, name: str) -> bool:
    crd = server.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    found = {condition["type"]: condition["status"] for condition in crd["status"].get("conditions") or ()}
    return found.get("Established") == "True" and found.get("NonStructuralSchema", "False") == "False"


def _explained(server: Client) -> bool:
    try:
        schemas = server.request("GET", f"/openapi/v3/apis/{GROUP}/{VERSION}")["components"]["schemas"]
    except ApiError:
        return False
    return all(
        any(name.endswith(f".{crd['spec']['names']['kind']}") for name in schemas) for crd in definitions().values()
    )


class Answer(NamedTuple):
    """What the API server said to a manifest."""

    stored: dict[str, Any] | None
    """What it would store; None when it refused."""
    faults: dict[str, str]
    """Field -> message, of a refusal."""


def send(
    server: Client, kind: type[Resource], namespace: str, spec: Spec, *, name: str = "x", dry: bool = True
) -> Answer:
    """Creates a resource, or only asks whether it could be."""
    query = "?fieldValidation=Strict" + ("&dryRun=All" if dry else "")
    try:
        return Answer(server.request("POST", path_of(kind, namespace) + query, body(kind, name, spec, namespace)), {})
    except ApiError as error:
        return Answer(None, _faults(error))


def replace(server: Client, kind: type[Resource], namespace: str, name: str, spec: Spec) -> Answer:
    """Puts another spec in place of a resource's."""
    path = path_of(kind, namespace, name)
    whole = {**server.request("GET", path), "spec": spec}
    try:
        return Answer(server.request("PUT", f"{path}?fieldValidation=Strict&dryRun=All", whole), {})
    except ApiError as error:
        return Answer(None, _faults(error))


def _faults(error: ApiError) -> dict[str, str]:
    """Field -> message of a refusal.

    :raises ApiError: the same, when it is no refusal of a manifest.
    """
    status = json.loads(error.body)
    if error.status == 400 and "strict decoding error" in status["message"]:
        return dict.fromkeys(re.findall(r'unknown field "([^"]+)"', status["message"]), "unknown field")
    if error.status != 422:
        raise error
    found: dict[str, str] = {}
    for cause in status["details"]["causes"]:
        field = cause.get("field", "")
        found[field] = f"{found.get(field, '')}; {cause['message']}".lstrip("; ")
    return found
