"""Who may do what: this user for what the commands read, and the operator's ServiceAccount for what it has to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcommons_cli.cluster_api import ClusterApi, ClusterError
from kvcommons_cli.findings import Finding, note, ok, problem, warning
from kvcommons_cli.resources import GROUP, PLURALS, Pod

Right = tuple[str, str, str]
"""verb, API group, resource[/subresource]"""
READS: Sequence[Right] = (
    *(("list", GROUP, plural) for plural in PLURALS[:2]),
    ("list", "", "pods"),
    ("get", "", "pods/proxy"),
)
WRITES: Sequence[Right] = tuple(("create", GROUP, plural) for plural in PLURALS[:2])
NAMESPACES_MAX = 16
"""Each costs as many questions as there are rights."""
NAMESPACES_VARIABLE = "KVCOMMONS_OPERATOR__NAMESPACES"
OPERATOR: Sequence[Right] = (
    *(("list", GROUP, plural) for plural in PLURALS),
    *(("watch", GROUP, plural) for plural in PLURALS),
    *(("patch", GROUP, f"{plural}/status") for plural in PLURALS[:2]),
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("patch", "", "services"),
    ("patch", "", "secrets"),
    ("patch", "apps", "deployments"),
    ("patch", "apps", "daemonsets"),
    ("patch", "apps", "statefulsets"),
    ("patch", "policy", "poddisruptionbudgets"),
    ("patch", "networking.k8s.io", "networkpolicies"),
    ("create", "events.k8s.io", "events"),
    ("list", "events.k8s.io", "events"),
)


def attributes(right: Right, namespace: str) -> dict[str, str]:
    """A right as an access review names it; without a namespace, in all of them."""
    verb, group, resource = right
    name, _, subresource = resource.partition("/")
    wanted = {"verb": verb, "group": group, "resource": name, "subresource": subresource, "namespace": namespace}
    return {field: value for field, value in wanted.items() if value}


def shown(rights: Sequence[Right]) -> str:
    return ", ".join(f"{verb} {resource}{'.' + group if group else ''}" for verb, group, resource in rights)


def of_this_user(api: ClusterApi, namespace: str) -> Iterator[Finding]:
    """By SelfSubjectAccessReview, which everybody may ask for."""
    where = f"in {namespace}" if namespace else "in all namespaces"

    def lacking(rights: Sequence[Right]) -> list[Right]:
        return [one for one in rights if not api.allowed({"resourceAttributes": attributes(one, namespace)})]

    try:
        reads, writes = lacking(READS), lacking(WRITES)
    except ClusterError as error:
        yield note("your rights", f"they could not be asked for: {error.what}")
        return
    if reads:
        yield warning(
            "your rights",
            f"you may not {shown(reads)} {where}, so not all can be seen",
            "ask for these rights, or look at one namespace with -n",
        )
    if writes:
        yield note("your rights", f"you may not {shown(writes)} {where}")
    if not reads and not writes:
        yield ok("your rights", f"you may see everything and create resources {where}")


def of_the_operator(api: ClusterApi, operators: Sequence[Pod]) -> Iterator[Finding]:
    """By SubjectAccessReview, where this user may ask for others: in the namespaces that the operator looks after."""
    for account, namespaces in sorted({(_account(one), _namespaces(one)) for one in operators}):
        try:
            yield from _lacking(api, account, namespaces)
        except ClusterError as error:
            if error.status != 403:
                raise
            yield note("operator's rights", "you may not ask what others may do, so they were not looked at")
            return


def _account(operator: Pod) -> tuple[str, str]:
    return operator.namespace, operator.service_account


def _namespaces(operator: Pod) -> tuple[str, ...]:
    """Those that it looks after; the empty one stands for all."""
    given = operator.environment.get(NAMESPACES_VARIABLE, "")
    return tuple(name.strip() for name in given.split(",") if name.strip()) or ("",)


def _lacking(api: ClusterApi, account: tuple[str, str], namespaces: Sequence[str]) -> Iterator[Finding]:
    """What one ServiceAccount may not do, where it has to."""
    namespace, name = account
    user = f"system:serviceaccount:{namespace}:{name}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    well = True
    for where in namespaces[:NAMESPACES_MAX]:

        def may(right: Right, where: str = where) -> bool:
            review = {"user": user, "groups": groups, "resourceAttributes": attributes(right, where)}
            return api.allowed(review, "SubjectAccessReview")

        missing = [one for one in OPERATOR if not may(one)]
        if missing:
            well = False
            place = f"in {where}" if where else "in all namespaces"
            yield problem(
                "operator's rights",
                f"{user} may not {shown(missing)} {place}",
                "upgrade the chart: it brings the rules",
            )
    if well:
        yield ok("operator's rights", f"{user} may do what the operator does")
