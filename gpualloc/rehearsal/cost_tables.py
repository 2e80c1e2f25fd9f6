"""Tables of what each collective of a group costs, for the extension, which draws straight lines between their points."""

from __future__ import annotations

from gpualloc.rehearsal.collective_time import OPERATIONS, GroupTopology, collective_time

_MIN_EXPONENT, _MAX_EXPONENT, _PER_OCTAVE = 2, 36, 4  # 4 bytes to 64 GiB; beyond, the last two points' line goes on

CostPoints = list[tuple[float, float, float, float, float]]  # bytes, latency_s, transfer_s, demand, cpu_s


def cost_tables(topology: GroupTopology) -> dict[str, CostPoints]:
    """Operation, or operation/dtype where the link tells them apart, -> points in ascending order of bytes."""
    tables = {}
    for operation in OPERATIONS:
        link = topology.network if operation == "network_point_to_point" else topology.link
        if operation == "point_to_point":
            link = topology.node_link
        if link is None:
            continue
        measured = link.measured.seconds if link.measured is not None else {}
        known = {*measured, *link.host_cost}
        dtypes = {name.split("/", 1)[1] for name in known if name.startswith(f"{operation.removeprefix('network_')}/")}
        for dtype in ("", *sorted(dtypes)):
            tables[f"{operation}/{dtype}" if dtype else operation] = _points(operation, topology, dtype)
    return tables


def _points(operation: str, topology: GroupTopology, dtype: str) -> CostPoints:
    points = []
    for step in range(_MIN_EXPONENT * _PER_OCTAVE, _MAX_EXPONENT * _PER_OCTAVE + 1):
        num_bytes = 2.0 ** (step / _PER_OCTAVE)
        time = collective_time(operation, num_bytes, topology, dtype=dtype)
        points.append((num_bytes, time.latency_s, time.transfer_s, time.demand, time.host_cpu_s))
    return points
