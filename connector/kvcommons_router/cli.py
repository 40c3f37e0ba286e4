"""The command line of the router."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvcommons_core.errors import ConfigurationError

from kvcommons_router.picker import Policy
from kvcommons_router.serving import serve
from kvcommons_router.settings import RouterSettings, load, parse_instance


def parser() -> argparse.ArgumentParser:
    """The flags; each one stands over the file."""
    found = argparse.ArgumentParser(
        prog="kvcommons router",
        description="An OpenAI-compatible proxy that sends each request to the replica that already holds its prefix.",
    )
    found.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML, or JSON by its name")
    found.add_argument("--listen", metavar="HOST:PORT", help="where clients come (default 127.0.0.1:8000)")
    found.add_argument("--workers", type=int, metavar="N", help="processes that share the port (default 1)")
    found.add_argument(
        "--instance",
        action="append",
        default=[],
        metavar="name=A,url=http://H:P,model=M[,node=N][,zone=Z][,dp_rank=R]",
        help="an engine replica; give it once for each",
    )
    found.add_argument("--redis", metavar="URL", help="the shared index")
    found.add_argument(
        "--prefix", metavar="TEXT", help="what the pool's keys in Redis begin with (default kvc:default:)"
    )
    found.add_argument(
        "--policy", choices=[policy.value for policy in Policy], help="how a replica is chosen (default cost)"
    )
    found.add_argument("--api-keys", type=Path, metavar="FILE", help="API keys and their tenants, JSON")
    found.add_argument("--salt-secret", type=Path, metavar="FILE", help="what tenants' salts are made with")
    found.add_argument(
        "--access-log", action="store_true", default=None, help="a JSON line a request on standard output"
    )
    found.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    found.add_argument("--drain-seconds", type=float, metavar="S", help="how long requests may end after SIGTERM")
    return found


def settings_of(arguments: Sequence[str], environ: Mapping[str, str]) -> RouterSettings:
    """The settings that a command line asks for.

    :raises ConfigurationError: if they can't be used.
    """
    given = parser().parse_args(arguments)
    names = ("listen", "workers", "policy", "api_keys", "salt_secret", "access_log", "log_level", "drain_seconds")
    values = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.instance:
        values["instances"] = tuple(parse_instance(text) for text in given.instance)
    index = {"url": given.redis, "prefix": given.prefix}
    return load(given.config, environ, values, {name: value for name, value in index.items() if value is not None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the router; 2 for settings that can't be used."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        settings = settings_of(words, os.environ)
    except ConfigurationError as error:
        sys.stderr.write(f"kvcommons router: {error}\n")
        return 2
    logging.basicConfig(
        level=settings.router.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        config = parser().parse_args(words).config
        return serve(settings, config=config, load=lambda: settings_of(words, os.environ))
    except ConfigurationError as error:
        sys.stderr.write(f"kvcommons router: {error}\n")
        return 2
