"""Say what is wrong on this machine or in this cluster, and what to do about it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kvcommons_cli import cluster_api, control, doctor_cluster, doctor_local, findings
from kvcommons_cli.cluster_api import ClusterError
from kvcommons_cli.findings import Finding, Level, note, problem
from kvcommons_cli.status import add_cluster_options

PROBLEMS_STATUS = 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="kvcommons doctor", description=__doc__, epilog="Ends with status 1 where there is a problem."
    )
    add_cluster_options(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    found = [*doctor_local.examine(options.url, options.token_file), *_cluster(options)]
    if options.output == "json":
        control.show(findings.document(found))
    else:
        sys.stdout.write(findings.shown(found) + "\n")
    return PROBLEMS_STATUS if any(one.level == Level.PROBLEM for one in found) else 0


def _cluster(options: argparse.Namespace) -> list[Finding]:
    if options.local:
        return []
    if not cluster_api.configured(options.kubeconfig, options.context):
        return [note("cluster", "no kubeconfig is here, so no cluster was looked at", "set KUBECONFIG to look at one")]
    try:
        api = cluster_api.connect(options.kubeconfig, options.context)
        with cluster_api.cluster_errors():
            return doctor_cluster.examine(api, options.namespace)
    except ClusterError as error:
        return [problem("cluster", error.what, error.remedy)]
