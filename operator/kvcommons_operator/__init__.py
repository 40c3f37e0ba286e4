"""The Kubernetes operator. Nothing of it is here yet: no handler, no CRD; `kvcommons --help` does not name it."""
