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
OPERATOR: Sequence[Right] = (
    *(("list", GROUP, plural) for plural in PLURALS),
    *(("watch", GROUP, plural) for plural in PLURALS),
    *(("patch", GROUP, f"{plural}/status") for plural in PLURALS),
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("patch", "", "services"),
    ("patch", "", "secrets"),
    ("patch", "apps", "deployments"),
    ("patch", "apps", "daemonsets"),
    ("patch", "apps", "statefulsets"),
    ("patch", "policy", "poddisruptionbudgets"),
    ("patch", "networking.k8s.io", "networkpolicies"),
    ("create", "", "events"),
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
    """By SubjectAccessReview, where this user may ask for others. An operator of some namespaces has its rights there only."""
    for namespace, name in sorted({(one.namespace, one.service_account) for one in operators}):
        try:
            yield _account(api, namespace, name)
        except ClusterError as error:
            if error.status != 403:
                raise
            yield note("operator's rights", "you may not ask what others may do, so they were not looked at")
            return


def _account(api: ClusterApi, namespace: str, name: str) -> Finding:
    """What one ServiceAccount lacks."""
    user = f"system:serviceaccount:{namespace}:{name}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]

    def may(right: Right) -> bool:
        review = {"user": user, "groups": groups, "resourceAttributes": attributes(right, "")}
        return api.allowed(review, "SubjectAccessReview")

    missing = [one for one in OPERATOR if not may(one)]
    if len(missing) == len(OPERATOR):
        return note(
            "operator's rights", f"{user} has none in all namespaces: right for one that serves some namespaces only"
        )
    if missing:
        return problem(
            "operator's rights", f"{user} may not {shown(missing)}", "upgrade the chart: it brings the rules"
        )
    return ok("operator's rights", f"{user} may do what the operator does")
