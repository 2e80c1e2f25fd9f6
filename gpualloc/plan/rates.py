"""How fast a workload trains on some GPUs: by the user's table, else as measured, else as rehearsed, else by the forecast.

The first of these that knows a type, count and precision counts; another is not asked. Measurements are those of the results store: of the
same model, size and tuning, without details (channels-last, compile, ...) that a plan cannot ask for; the newest of a case counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpualloc.plan.cluster_file import ClusterFile, ClusterNode, is_same_device
from gpualloc.plan.records import PlannedRate
from gpualloc.plan.workloads import TableRate, Workload
from gpualloc.records import BenchCase, Measurement

_PLAIN = (
    "tuning",
    "pin_memory",
    "non_blocking",
    "num_workers",
    "optimizer",
    "grad_accum_steps",
)  # details that leave the plan's settings what they are


@dataclass(frozen=True, kw_only=True)
class KnownRate:
    """A rate at one batch, or why there is none."""

    num_nodes: int
    num_gpus: int
    strategy: str
    precision: str
    hook: str = "none"
    per_device_batch_size: int | None = None  # None: the rate holds whatever the batch is
    step_time_s: tuple[float, float, float] | None = None  # (value, low, high) of a step
    num_passes: int = 1  # backward passes in that step
    pass_time_s: float | None = None  # of one pass that waits for no other rank; None: its part of the step
    table_rate: TableRate | None = None
    memory_gib: float | None = None
    source: str = ""
    refusal: str | None = None

    def samples_per_s(self, accum: int, global_batch_size: int) -> PlannedRate:
        """At so many backward passes a step."""
        row = self.table_rate
        if row is not None and row.samples_per_s is not None:
            value = row.samples_per_s
            return PlannedRate(value=value, low=row.low or value, high=row.high or value, source=self.source)
        if row is not None:
            assert row.step_time_s is not None
            times = (row.step_time_s, row.high or row.step_time_s, row.low or row.step_time_s)
        else:
            assert self.step_time_s is not None
            value, low, high = self.step_time_s
            pass_time_s = value / self.num_passes if self.pass_time_s is None else self.pass_time_s
            ratio = (value + (accum - self.num_passes) * pass_time_s) / value
            times = (value * ratio, high * ratio, low * ratio)
        return PlannedRate(
            value=global_batch_size / times[0], low=global_batch_size / times[1], high=global_batch_size / times[2], source=self.source
        )


@dataclass(frozen=True, kw_only=True)
class ForecastQuery:
    """A step that nobody has measured."""

    case: BenchCase
    node: ClusterNode
    network: str | None
    num_nodes: int


@dataclass(frozen=True, kw_only=True)
class ForecastAnswer:
    step_time_s: tuple[float, float, float] | None  # (value, low, high); None: refused
    reason: str


Forecaster = Callable[[Sequence[ForecastQuery]], Sequence[ForecastAnswer]]


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What rates come from, beside the user's tables."""

    measurements: tuple[Measurement, ...] = ()  # newest first
    forecaster: Forecaster | None = None

    def measurements_of(self, workload: Workload) -> list[Measurement]:
        return [
            row
            for row in self.measurements
            if (row.case.model, row.case.workload, row.case.tuning) == (workload.model, workload.kind, workload.tuning)
        ]


def read_measurements(store_path: Path) -> tuple[Measurement, ...]:
    """All readable measurements of a store, newest run first; none where there is no store.

    Raises:
        StoreError: the store cannot be read.
    """
    from gpualloc.store import ResultsStore

    if not store_path.exists():
        return ()
    with ResultsStore(store_path, create=False) as store:
        return tuple(row for run in store.runs() for row in store.measurements(run.run_id)[0])


def find_rates(
    workload: Workload, cluster: ClusterFile, gpu_type: str, shapes: Sequence[tuple[int, int]], knowledge: Knowledge
) -> list[KnownRate]:
    """What is known of each (nodes, GPUs), in several precisions, strategies and batches."""
    node = cluster.nodes_of(gpu_type)[0]
    found = [_from_table(workload, row) for row in workload.rates if row.gpu_type == gpu_type and (row.num_nodes, row.num_gpus) in shapes]
    rows = [row for row in knowledge.measurements_of(workload) if _is_of(row, workload, cluster, node)]
    newest: dict[str, Measurement] = {}
    for row in rows:
        newest.setdefault(row.case.key(), row)
    measured = [rate for row in newest.values() if (rate := _from_measurement(row, node, shapes)) is not None]
    for is_rehearsed in (False, True):
        known = {(rate.num_nodes, rate.num_gpus, rate.precision) for rate in found}
        found += [
            rate
            for rate in measured
            if rate.source.startswith("rehearsed") == is_rehearsed and (rate.num_nodes, rate.num_gpus, rate.precision) not in known
        ]
    if knowledge.forecaster is not None and rows:
        known = {(rate.num_nodes, rate.num_gpus, rate.precision) for rate in found}
        found += _forecast(workload, cluster, node, list(shapes), known, rows, knowledge.forecaster)
    return found


def strategies_for(workload: Workload, num_gpus: int) -> list[str]:
    """Those of its strategies that are meant for so many GPUs."""
    return [name for name in workload.strategies if (name == "single") == (num_gpus == 1)]


def no_strategy_text(workload: Workload, num_gpus: int) -> str:
    return f"none of its strategies ({', '.join(workload.strategies)}) is for {num_gpus} GPU{'s' if num_gpus > 1 else ''}"


def _from_table(workload: Workload, row: TableRate) -> KnownRate:
    strategy = row.strategy or next(iter(strategies_for(workload, row.num_gpus)), None)
    refusal = None
    if strategy is None:
        refusal = no_strategy_text(workload, row.num_gpus)
    precision = row.precision or workload.precisions[0]
    if strategy is not None and strategy not in workload.strategies:
        refusal = f"its table has strategy {strategy}, it allows {', '.join(workload.strategies)}"
    if precision not in workload.precisions:
        refusal = f"its table has precision {precision}, it allows {', '.join(workload.precisions)}"
    default_hook = workload.hooks[0] if workload.hooks and strategy == "ddp" else "none"
    return KnownRate(
        num_nodes=row.num_nodes,
        num_gpus=row.num_gpus,
        strategy=strategy or workload.strategies[0],
        precision=precision,
        hook=row.hook or default_hook,
        per_device_batch_size=row.per_device_batch_size,
        table_rate=row,
        memory_gib=row.memory_gib,
        source="table",
        refusal=refusal,
    )


def _is_of(row: Measurement, workload: Workload, cluster: ClusterFile, node: ClusterNode) -> bool:
    case = row.case
    details = {name: value for name, value in case.details().items() if name not in _PLAIN}
    if row.status != "ok" or row.step_time_s is None or details or case.ranks_per_gpu != 1 or row.environment is None:
        return False
    if (case.image_size_px, case.sequence_length) != (workload.image_size_px, workload.sequence_length):
        return False
    if case.precision not in workload.precisions or case.strategy not in workload.strategies:
        return False
    if case.strategy == "ddp" and workload.hooks is not None and case.hook not in workload.hooks:
        return False
    if case.is_rehearsed and (case.link, case.network) not in ((node.link, cluster.network), (node.link, None), (None, cluster.network)):
        return False
    return is_same_device(node, row.environment.device_name, case.device)


def _from_measurement(row: Measurement, node: ClusterNode, shapes: Sequence[tuple[int, int]]) -> KnownRate | None:
    case = row.case
    num_nodes = 1
    if case.is_rehearsed:
        assert case.gpus_per_node is not None
        num_nodes = max(1, case.world_size // case.gpus_per_node)
    if (num_nodes, case.world_size) not in shapes:
        return None
    assert row.step_time_s is not None
    low = row.step_time_ci_low_s or row.step_time_low_s or row.step_time_s
    high = row.step_time_ci_high_s or row.step_time_high_s or row.step_time_s
    rehearsed = f"rehearsed: {case.cluster()}" if case.is_rehearsed else "measured"
    return KnownRate(
        num_nodes=num_nodes,
        num_gpus=case.world_size,
        strategy=case.strategy,
        precision=case.precision,
        hook=case.hook,
        per_device_batch_size=case.per_device_batch_size,
        step_time_s=(row.step_time_s, min(low, row.step_time_s), max(high, row.step_time_s)),
        num_passes=case.grad_accum_steps,
        pass_time_s=None if row.compute_time_s is None else row.compute_time_s / case.grad_accum_steps,
        source=rehearsed,
    )


def _forecast(
    workload: Workload,
    cluster: ClusterFile,
    node: ClusterNode,
    shapes: Sequence[tuple[int, int]],
    known: set[tuple[int, int, str]],
    rows: Sequence[Measurement],
    forecaster: Forecaster,
) -> list[KnownRate]:
    """At the batches and precisions that were measured on this GPU type, for counts that were not."""
    import dataclasses

    queries = []
    for num_nodes, num_gpus in shapes:
        strategy = "single" if num_gpus == 1 and "single" in workload.strategies else "ddp"
        if strategy not in workload.strategies:
            continue
        for case in dict.fromkeys(dataclasses.replace(row.case, num_steps=1, num_warmup_steps=0, num_repeats=1) for row in rows):
            if (num_nodes, num_gpus, case.precision) in known or case.strategy not in ("single", "ddp"):
                continue
            hook = case.hook if strategy == "ddp" else "none"
            asked = dataclasses.replace(
                case,
                strategy=strategy,
                hook=hook,
                world_size=num_gpus,
                gpus_per_node=None,
                link=None,
                network=None,
                seed=0,
                grad_accum_steps=1,
            )
            query = ForecastQuery(case=asked, node=node, network=cluster.network, num_nodes=num_nodes)
            if query not in queries:
                queries.append(query)
    return [
        KnownRate(
            num_nodes=query.num_nodes,
            num_gpus=query.case.world_size,
            strategy=query.case.strategy,
            precision=query.case.precision,
            hook=query.case.hook,
            per_device_batch_size=query.case.per_device_batch_size,
            step_time_s=answer.step_time_s,
            source=f"forecast: {answer.reason}",
            refusal=None if answer.step_time_s is not None else f"no forecast: {answer.reason}",
        )
        for query, answer in zip(queries, forecaster(queries) if queries else (), strict=True)
    ]
