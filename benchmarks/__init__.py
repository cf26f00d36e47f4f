"""Benchmarks: ``python -m benchmarks [NAME ...] [--runs N] [--dir DIR] [--json FILE] [--png FILE]``.

Each measures modelstore, a floor (what the system itself takes) and the peers that are installed, in one run. A bound
that is missed is reported; only a benchmark that could not run is an error.
"""

#: By name, the function ``(Settings) -> Iterator[Row | Entry | Bound | Note]``, loaded when it is asked for, and how
#: many runs it takes unless told otherwise.
REGISTRY = {
    "warm": ("benchmarks.warm:run", 200),
    "transfer": ("benchmarks.transfer:run", 5),
    "hub": ("benchmarks.hub:run", 5),
    "distance": ("benchmarks.distance:run", 3),
}
