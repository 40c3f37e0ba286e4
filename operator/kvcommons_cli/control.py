"""How the command speaks the control API of a node: the address, the token, and refusals as one message."""

from __future__ import annotations

import argparse
import json
import ssl
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kvcommons_cli import talk

URL_DEFAULT = "http://127.0.0.1:9470"
REFUSED_STATUS = 1
SECONDS_MAX = 60.0
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class InputError(Exception):
    """What the user gave, named, and what is wrong with it."""


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with what every such command takes."""
    made = argparse.ArgumentParser(prog=f"kvcommons {command}", description=description)
    made.add_argument(
        "--url", type=address, default=URL_DEFAULT, help=f"control API of the node (default {URL_DEFAULT})"
    )
    made.add_argument("--token-file", type=Path, help="file with the bearer token, where the node wants one")
    add_tls(made)
    return made


def add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ca-file", type=Path, help="authorities of the node's certificate (PEM; default the system's)"
    )
    parser.add_argument("--cert-file", type=Path, help="the own certificate (PEM), where the node wants one")
    parser.add_argument("--key-file", type=Path, help="its private key (PEM)")


def tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    """:raises InputError: if a file is no certificate, or can't be read."""
    given = {name: getattr(options, name, None) for name in ("ca_file", "cert_file", "key_file")}
    if not any(given.values()):
        return None
    try:
        context = ssl.create_default_context(cafile=given["ca_file"])
        if given["cert_file"]:
            context.load_cert_chain(given["cert_file"], given["key_file"])
    except (OSError, ValueError) as error:
        names = ", ".join(str(one) for one in given.values() if one)
        raise InputError(f"{names}: {error}: give PEM files that fit each other") from error
    return context


def address(text: str) -> str:
    """:raises argparse.ArgumentTypeError: if it is no HTTP address."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: give http://HOST:PORT")
    return text


def seconds(text: str) -> int:
    """A time as it is written on the command line. :raises ValueError: if it is none."""
    digits, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "s")
    return int(digits) * UNITS[unit]


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="a table, or the answer as JSON"
    )


def headers(options: argparse.Namespace) -> dict[str, str]:
    """:raises OSError: if the token's file can't be read."""
    if options.token_file is None:
        return {}
    return {"Authorization": f"Bearer {options.token_file.read_text().strip()}"}


def ask(options: argparse.Namespace, method: str, path: str, body: object = None) -> dict[str, Any]:
    """One call. :raises talk.TalkError: if it is refused or nobody answers."""
    url = options.url.rstrip("/") + path
    return talk.call_json(method, url, body, headers=headers(options), seconds_max=SECONDS_MAX, tls=tls(options))


def items(answer: Mapping[str, Any], name: str) -> list[Any]:
    """The list of that name. :raises talk.TalkError: if there is none: somebody else answers there."""
    found = answer.get(name)
    if not isinstance(found, list):
        raise talk.TalkError(
            "the node", 200, f"its answer has no list {name!r}: is this a kvcommons node's control API?"
        )
    return found


def show(answer: Mapping[str, Any]) -> int:
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return 0


def told(command: str, act: Callable[[], int]) -> int:
    """Run a command; what is refused becomes one message on standard error."""
    try:
        return act()
    except talk.TalkError as error:
        sys.stderr.write(f"kvcommons {command}: {explained(error)}\n")
    except InputError as error:
        sys.stderr.write(f"kvcommons {command}: {error}\n")
    except OSError as error:
        sys.stderr.write(f"kvcommons {command}: {error.filename}: {error.strerror}\n")
    return REFUSED_STATUS


def explained(error: talk.TalkError) -> str:
    """The node's own words, where it gave any."""
    try:
        detail = json.loads(error.detail)["error"]
        field = f"{detail['field']}: " if detail.get("field") else ""
        value = f"{detail['value']}: " if detail.get("value") else ""
        return f"{field}{value}{detail['message']}; {detail['remedy']}"
    except (ValueError, KeyError, TypeError):
        return f"{error}; is the node running? Its address is given by --url" if error.status == 0 else str(error)
