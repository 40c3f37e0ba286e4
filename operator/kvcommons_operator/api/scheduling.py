"""Where pods run: affinity and spreading, as Kubernetes spells them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import Argument, Label, LabelSelector, ListType, ObjectName, QualifiedName, StrictInt

Weight = Annotated[StrictInt, Field(ge=1, le=100)]


class NodeOperator(StrEnum):
    """How a node's label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class NodeRequirement(Model):
    """One condition on a node's label."""

    key: QualifiedName
    """Key of the label."""
    operator: NodeOperator
    """In and NotIn take several values, Gt and Lt one whole number, Exists and DoesNotExist none."""
    values: Annotated[tuple[Argument, ...], Field(max_length=32), ListType("atomic")] = ()
    """What is compared with."""

    RULES = (
        Rule(
            cel="(self.operator in ['Exists', 'DoesNotExist']) == (!has(self.values) || self.values.size() == 0)",
            message="Exists and DoesNotExist take no `values`; the other operators need some",
            holds=lambda it: (it.operator in ("Exists", "DoesNotExist")) == (not it.values),
            field=".values",
        ),
        Rule(
            cel="!(self.operator in ['Gt', 'Lt']) || (has(self.values) && self.values.size() == 1 && self.values[0].matches('^-?[0-9]{1,18}$'))",
            message="Gt and Lt take exactly one value, a whole number",
            holds=lambda it: it.operator not in ("Gt", "Lt") or (len(it.values) == 1 and _whole(it.values[0])),
            field=".values",
        ),
    )


def _whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return 0 < len(digits) <= 18 and digits.isascii() and digits.isdigit()


class FieldOperator(StrEnum):
    """How a node's field is compared."""

    IN = "In"
    NOT_IN = "NotIn"


class NodeFieldRequirement(Model):
    """One condition on a node's field."""

    key: Literal["metadata.name"]
    """The field; Kubernetes knows metadata.name alone."""
    operator: FieldOperator
    """In: the node is this one. NotIn: it is any other."""
    values: Annotated[tuple[ObjectName, ...], Field(min_length=1, max_length=1), ListType("atomic")]
    """Name of the node."""


class NodeTerm(Model):
    """Nodes that fulfil all of these conditions."""

    match_expressions: Annotated[tuple[NodeRequirement, ...], Field(max_length=16), ListType("atomic")] = ()
    """Conditions on labels."""
    match_fields: Annotated[tuple[NodeFieldRequirement, ...], Field(max_length=16), ListType("atomic")] = ()
    """Conditions on fields."""


class PreferredNodes(Model):
    """Nodes that are liked, and how much."""

    weight: Weight
    """How much, beside the other terms."""
    preference: NodeTerm
    """Which nodes."""


class NodeTerms(Model):
    """Nodes that fulfil any of these terms."""

    node_selector_terms: Annotated[tuple[NodeTerm, ...], Field(min_length=1, max_length=16), ListType("atomic")]
    """The terms; one is enough."""


class NodeAffinity(Model):
    """Which nodes pods must or should run on."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    """Nodes that pods must run on."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredNodes, ...], Field(max_length=16), ListType("atomic")
    ] = ()
    """Nodes that pods should run on."""


class PodTerm(Model):
    """Pods that these should be near to, or far from."""

    topology_key: QualifiedName
    """Label of nodes that says what near is: kubernetes.io/hostname, topology.kubernetes.io/zone."""
    label_selector: LabelSelector | None = None
    """Which pods; none when left out."""
    namespaces: Annotated[tuple[Label, ...], Field(max_length=16), ListType("atomic")] = ()
    """Namespaces of those pods; their own when empty."""
    namespace_selector: LabelSelector | None = None
    """Namespaces of those pods by label; an empty selector means all."""


class PreferredPods(Model):
    """Pods that these would rather be near to, or far from, and how much."""

    weight: Weight
    """How much, beside the other terms."""
    pod_affinity_term: PodTerm
    """Which pods."""


class PodAffinity(Model):
    """Which pods these must or should be near to; for podAntiAffinity, far from."""

    required_during_scheduling_ignored_during_execution: Annotated[
        tuple[PodTerm, ...], Field(max_length=16), ListType("atomic")
    ] = ()
    """Pods that decide whether a node will do."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredPods, ...], Field(max_length=16), ListType("atomic")
    ] = ()
    """Pods that decide which node is better."""


class Affinity(Model):
    """Which nodes and neighbours the pods want."""

    node_affinity: NodeAffinity | None = None
    """Which nodes pods must or should run on."""
    pod_affinity: PodAffinity | None = None
    """Which pods these must or should be near to."""
    pod_anti_affinity: PodAffinity | None = None
    """Which pods these must or should be far from."""


class Unsatisfiable(StrEnum):
    """What becomes of a pod that would make the spread worse than allowed."""

    DO_NOT_SCHEDULE = "DoNotSchedule"
    SCHEDULE_ANYWAY = "ScheduleAnyway"


class TopologySpread(Model):
    """How evenly pods are spread."""

    max_skew: Annotated[StrictInt, Field(ge=1, le=1_024)]
    """How many pods more than the emptiest place any may have."""
    topology_key: QualifiedName
    """Label of nodes that says what a place is."""
    when_unsatisfiable: Unsatisfiable
    """Whether a pod waits or goes anyway where the spread can't be kept."""
    label_selector: LabelSelector | None = None
    """Which pods are counted; those of this resource when left out."""


TopologySpreads = Annotated[
    tuple[TopologySpread, ...], Field(max_length=8), ListType("map", "topology_key", "when_unsatisfiable")
]
