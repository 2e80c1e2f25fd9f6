"""Which size to measure next: the scaling model of what was measured says where the efficiency likely passes the bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpualloc.bench.grid import GridCell
from gpualloc.errors import GpuallocError
from gpualloc.records import BenchCase, Measurement
from gpualloc.scaling import ScalingModel, StepQuery, StepRow
from gpualloc.scaling.suggest import suggest_crossing


def most_telling(
    series: Sequence[tuple[GridCell, GridCell]], measured: Mapping[str, Measurement], *, min_efficiency: float, most_steps: int
) -> tuple[int, bool]:
    """(index into `series` of the place to measure, whether a forecast chose it and not halving alone).

    The forecast's choice is moved towards the middle as far as halving needs, so that `most_steps` measurements suffice whatever the curve.

    Args:
        series: of each size, ascending, the case on one GPU and the one on several; the first one fails, the last one pays.
        measured: case key -> what came of it, of one model in one way to use several GPUs.
    """
    inner = len(series) - 2
    middle = 1 + inner // 2
    reach = 2 ** max(0, most_steps - 1) - 1  # sizes on either side that halving tells apart with the measurements left after this one
    chosen = _crossing(series, measured, min_efficiency) if inner <= 2 * reach + 1 else None
    if chosen is None:
        return middle, False
    return min(max(chosen, inner - reach), 1 + reach), True


def _crossing(series: Sequence[tuple[GridCell, GridCell]], measured: Mapping[str, Measurement], min_efficiency: float) -> int | None:
    """The scaling model's choice; None where it has too little evidence."""
    rows = [
        StepRow(**vars(_query(row.case)), step_time_s=row.step_time_s, sync_time_s=row.exposed_comm_s if row.case.world_size > 1 else None)
        for row in measured.values()
        if row.status == "ok" and row.step_time_s is not None and not row.disturbances
    ]
    queries = [(_query(one.case), _query(many.case)) for one, many in series]
    try:
        return suggest_crossing(ScalingModel.fit(rows), queries, min_efficiency)
    except GpuallocError:
        return None


def _query(case: BenchCase) -> StepQuery:
    """Of a study: there is one machine, one model and one number of GPUs beside one."""
    return StepQuery(
        cluster="here",
        model=case.model,
        num_nodes=1,
        num_gpus=case.world_size,
        placement=str(case.world_size),
        per_device_batch_size=case.per_device_batch_size,
        image_size_px=case.image_size_px,
        sequence_length=case.sequence_length,
        precision=case.precision,
    )
