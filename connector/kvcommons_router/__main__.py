"""Run a router: an OpenAI-compatible proxy that sends each request to the replica that holds its prefix."""

from __future__ import annotations

import sys

from kvcommons_router.cli import main

if __name__ == "__main__":
    sys.exit(main())
