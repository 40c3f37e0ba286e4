"""`python -m kvcommons_cli` is the `kvcommons` command."""

import sys

from kvcommons_cli import main

sys.exit(main())
