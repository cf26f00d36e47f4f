"""Benchmarks: ``python -m benchmarks [NAME ...] [--runs N] [--dir DIR] [--json FILE]``.

Each measures modelstore, a floor (what the system itself takes) and the peers that are installed, in one run. A bound
that is missed is reported; only a benchmark that could not run is an error.
"""

#: By name, the function ``(Settings) -> Iterator[Row | Note]``; loaded when it is asked for.
REGISTRY = {"warm": "benchmarks.warm:run"}
