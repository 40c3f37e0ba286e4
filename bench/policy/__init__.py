"""The simulation of routing policies; `python -m bench.policy --help`."""
