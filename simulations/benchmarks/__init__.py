"""This library beside its peers: `python -m simulations.benchmarks NAME [--json FILE]`.

Each module here named after a benchmark has `run(progress) -> list[Row]`; the peer is measured
in the same run, and no figure of a peer is a constant.
"""
