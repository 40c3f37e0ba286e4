"""Parts that more than one kind has."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from kvcommons_operator.api.base import Model
from kvcommons_operator.api.common import EMPTY, Labels, LabelSelector, ListType, StrictBool


class LogLevel(StrEnum):
    """How much is said."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Monitoring(Model):
    """What is made for Prometheus, where the Prometheus operator's API exists."""

    service_monitor: StrictBool = False
    """Whether a ServiceMonitor is made."""
    prometheus_rule: StrictBool = False
    """Whether a PrometheusRule with alerts is made."""
    interval: Annotated[str, Field(max_length=8, pattern=r"^[1-9][0-9]{0,3}(s|m)$")] = "30s"
    """How often metrics are read, such as 30s or 1m."""
    labels: Labels = EMPTY
    """Labels of both, by which your Prometheus finds them, such as release: prometheus."""


class NetworkAccess(Model):
    """Who may connect, besides the parts that must."""

    enabled: StrictBool = True
    """Whether a NetworkPolicy is made. Only a network plugin that enforces policies makes it true."""
    allow_from: Annotated[tuple[LabelSelector, ...], Field(max_length=16), ListType("atomic")] = ()
    """Labels of namespaces that may connect too: those of Prometheus and of gateways."""
