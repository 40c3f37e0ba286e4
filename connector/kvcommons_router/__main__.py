"""`python -m kvcommons_router` and `kvcommons router`."""

from __future__ import annotations

import sys

from kvcommons_router.cli import main

if __name__ == "__main__":
    sys.exit(main())
