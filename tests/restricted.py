"""Pod Security Standards, level restricted, as a checker: what of a pod's specification breaks it. Written from the standard's text,
apart from the builders, so that one mistake is not in both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = frozenset(
    (
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    )
)
PROFILES = frozenset(("RuntimeDefault", "Localhost"))


def violations(spec: dict[str, Any]) -> list[str]:
    """Everything that the level forbids, as a list of words; empty for a pod that may run."""
    return [*_pod(spec), *(found for one in _containers(spec) for found in _container(one, spec))]


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", ()), *spec["containers"], *spec.get("ephemeralContainers", ())]


def _pod(spec: dict[str, Any]) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield name
    for volume in spec.get("volumes", ()):
        for kind in set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']}: {kind}"
    security = spec.get("securityContext", {})
    for name in ("sysctls", "seLinuxOptions", "windowsOptions"):
        if security.get(name):
            yield name


def _container(one: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    name, own = one["name"], one.get("securityContext", {})
    pod = spec.get("securityContext", {})

    def either(key: str) -> Any:
        return own[key] if key in own else pod.get(key)

    if own.get("privileged"):
        yield f"{name}: privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation"
    if either("runAsNonRoot") is not True:
        yield f"{name}: runAsNonRoot"
    if either("runAsUser") == 0:
        yield f"{name}: runAsUser 0"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield f"{name}: capabilities are not dropped"
    if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield f"{name}: capabilities are added"
    if (either("seccompProfile") or {}).get("type") not in PROFILES:
        yield f"{name}: seccompProfile"
    if own.get("procMount", "Default") != "Default":
        yield f"{name}: procMount"
    for port in one.get("ports", ()):
        if port.get("hostPort"):
            yield f"{name}: hostPort"
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if any("host" in handler for handler in one.get(probe, {}).values() if isinstance(handler, dict)):
            yield f"{name}: {probe} asks another host"
