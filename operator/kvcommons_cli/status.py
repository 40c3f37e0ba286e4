"""Show pools, cache nodes, deployments and replicas of a cluster; without one, the node of this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from kvcommons_cli import cluster_api, cluster_world, control, status_view
from kvcommons_cli.cluster_api import ClusterError
from kvcommons_cli.talk import TalkError

FAILED_STATUS = 1


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """What every command about a cluster takes."""
    parser.add_argument("--kubeconfig", default="", help="file with the cluster's address (default $KUBECONFIG)")
    parser.add_argument("--context", default="", help="context of the kubeconfig (default its current one)")
    parser.add_argument("-n", "--namespace", default="", help="only this namespace (default all)")
    parser.add_argument("--local", action="store_true", help="this machine's node, even where a cluster is known")
    parser.add_argument(
        "--url",
        type=control.address,
        default=control.URL_DEFAULT,
        help=f"its control API (default {control.URL_DEFAULT})",
    )
    parser.add_argument("--token-file", type=Path, help="file with its bearer token, where it wants one")
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table", help="table (default) or json")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="kvcommons status", description=__doc__)
    add_cluster_options(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.local or not cluster_api.configured(options.kubeconfig, options.context):
        return _local(options)
    try:
        api = cluster_api.connect(options.kubeconfig, options.context)
        with cluster_api.cluster_errors():
            world = cluster_world.read(api, options.namespace)
    except ClusterError as error:
        sys.stderr.write(f"kvcommons status: {error} (--local shows this machine's node)\n")
        return FAILED_STATUS
    now = datetime.now(UTC)
    if options.output == "json":
        return control.show(status_view.document(world, now))
    sys.stdout.write(f"{api.described}\n\n{status_view.tables(world, now)}\n")
    return 0


def _local(options: argparse.Namespace) -> int:
    def act() -> int:
        stats = control.ask(options, "GET", "/v1/stats")
        ready = _ready(options)
        if options.output == "json":
            return control.show({"ready": ready, "stats": stats})
        sys.stdout.write(status_view.local_tables(stats, ready) + "\n")
        return 0

    status = control.told("status", act)
    if status and not options.local:
        sys.stderr.write("kvcommons status: a cluster is not known here either: set KUBECONFIG to see one\n")
    return status


def _ready(options: argparse.Namespace) -> dict[str, object]:
    """The answer of /readyz, which is one even where it says no."""
    try:
        return control.ask(options, "GET", "/readyz")
    except TalkError as error:
        if error.status != 503:
            raise
        answer: dict[str, object] = json.loads(error.detail)
        return answer
