"""Start two replicas that share their KV on this machine, and stay: prints the URL to curl."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kvcommons_core.errors import KvCommonsError

from kvcommons_cli import talk
from kvcommons_cli.engines import MODEL_NAME
from kvcommons_cli.processes import StackError
from kvcommons_cli.progress import Progress
from kvcommons_cli.stack import Stack, StackOptions

FAILED_STATUS = 1
HOME_DEFAULT = Path(".demo")
ROUTER_PORT_DEFAULT = 8000
WATCH_SECONDS = 1.0
GUIDE = """
Ask it (Ctrl-C ends everything):

  curl {router}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is a harbour master?"}}]}}'

The replicas, past the router: {replicas}
The cache node: {node}/v1/stats, {node}/metrics, `kvcommons stats --url {node}`; the router: {router}/metrics; logs: {logs}
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kvcommons up", description=__doc__)
    parser.add_argument("--home", type=Path, default=HOME_DEFAULT, help="folder of the logs (default: .demo)")
    parser.add_argument("--port", type=int, default=ROUTER_PORT_DEFAULT, help="of the router, 0 for any free one")
    options = parser.parse_args(argv)
    if not 0 <= options.port < 1 << 16:
        parser.error(f"--port: {options.port} is not between 0 and 65535")
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    try:
        return stay(StackOptions(home=options.home, router_port=options.port), progress)
    except KeyboardInterrupt:
        progress.say("everything that was started has ended")
        return 0
    except (StackError, talk.TalkError, KvCommonsError) as error:
        sys.stderr.write(f"kvcommons up: {error}\n")
        return FAILED_STATUS


def stay(options: StackOptions, progress: Progress) -> NoReturn:
    """Start, tell how to ask, and watch until interrupted. :raises StackError: when a part ends by itself."""
    with Stack(options, progress) as stack:
        stack.start()
        sys.stdout.write(
            GUIDE.format(
                router=stack.router_url,
                node=stack.node_url,
                model=MODEL_NAME,
                logs=stack.logs,
                replicas=", ".join(stack.replica_urls),
            )
        )
        sys.stdout.flush()
        while True:
            stack.check_alive()
            time.sleep(WATCH_SECONDS)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
