"""Run the operator: reconciles KVCachePools and InferenceDeployments of a cluster."""

from __future__ import annotations

import sys

from kvcommons_operator.main import main

if __name__ == "__main__":
    sys.exit(main())
