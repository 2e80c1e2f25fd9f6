"""From the store and from files to the inputs of a report. Whatever cannot be read is refused by name before anything is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpualloc.errors import StoreError, UsageError
from gpualloc.plain_data import from_json
from gpualloc.records import Environment, Measurement
from gpualloc.report.inputs import MeasuredRun, Study, Watched

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gpualloc.profiling.records import Profile
    from gpualloc.profiling.trace import Trace
    from gpualloc.store import Run
    from gpualloc.watching.waste import Price

    Model = TypeVar("Model", bound=BaseModel)

_MAX_FILE_BYTES = 512 * 2**20
_TRACE_ENDINGS = (".json.gz", ".trace.json", ".pt.trace.json")
_MAX_SAMPLES = 2_000_000


def load_studies(names: Sequence[str], store_path: Path, *, min_efficiency: float) -> tuple[tuple[Study, ...], list[str]]:
    """(the runs by machine, in the order named; one message for each row that cannot be read).

    Args:
        names: run numbers, "latest", "all", or files that `gpualloc results export --format json` wrote.

    Raises:
        UsageError: a name that cannot be meant, or a file that is no exported run.
        StoreError: no store, or no such run in it.
    """
    found: list[tuple[Environment | None, MeasuredRun]] = []
    problems: list[str] = []
    numbers = [name for name in names if not _is_file_name(name)]
    if numbers:
        for run, measurements, bad in _read_store(numbers, store_path):
            problems += bad
            found.append((run.environment, _measured(str(run.run_id), vars(run), measurements)))
    found += [_read_exported(Path(name)) for name in names if _is_file_name(name)]
    by_machine: dict[str | None, list[tuple[Environment | None, MeasuredRun]]] = {}
    for environment, measured in found:
        by_machine.setdefault(None if environment is None else environment.key(), []).append((environment, measured))
    studies = tuple(
        Study(environment=group[0][0], runs=tuple(run for _, run in group), min_efficiency=min_efficiency) for group in by_machine.values()
    )
    return studies, problems


def _is_file_name(name: str) -> bool:
    return name.endswith(".json") or "/" in name


def _measured(name: str, run: dict[str, Any], measurements: Sequence[Measurement]) -> MeasuredRun:
    return MeasuredRun(
        name=name, started_at_utc=run["started_at_utc"], status=run["status"], command=run["command"], measurements=tuple(measurements)
    )


def _read_store(names: Sequence[str], path: Path) -> list[tuple[Run, list[Measurement], list[str]]]:
    from gpualloc.store import ResultsStore

    for name in names:
        if name not in ("latest", "all") and not (name.isascii() and name.isdecimal() and len(name) < 19):
            raise UsageError(
                f"RUN is {name!r}; give a number of 'gpualloc results list', 'latest', 'all' or a file of 'gpualloc results export'"
            )
    with ResultsStore(path, create=False) as store:
        runs = []
        for name in names:
            runs += list(reversed(store.runs())) if name == "all" else [store.run(None if name == "latest" else int(name))]
        unique = {run.run_id: run for run in runs}
        return [(run, *store.measurements(run.run_id)) for run in unique.values()]


def _read_exported(path: Path) -> tuple[Environment | None, MeasuredRun]:
    from gpualloc.store.rows import decode_environment, decode_measurement

    data = read_json(path, "RUN")
    try:
        rows = [decode_measurement(json.dumps(row)) for row in data["measurements"]]
        return decode_environment(json.dumps(data["environment"])), _measured(path.name, data, rows)
    except StoreError as error:
        raise UsageError(f"{path}: {error}; write it again with: gpualloc results export --format json -o {path}") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is no exported run: {error!r}; write one with: gpualloc results export --format json -o {path}"
        ) from error


def read_json(path: Path, option: str) -> Any:
    """The JSON in a file.

    Raises:
        UsageError: it cannot be read, is too large or is not JSON; names the option and the file.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{option} {path} is larger than {_MAX_FILE_BYTES // 2**20} MiB; give the file that gpualloc wrote")
        return from_json(path.read_bytes().decode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}; give a file that can") from error
    except ValueError as error:
        raise UsageError(f"{option} {path} is not JSON: {error}; write it again with --json") from error


def read_model(model: type[Model], path: Path, option: str, *, writer: str) -> Model:
    """A JSON file as a record of a later stage.

    Args:
        writer: the command that writes such a file.

    Raises:
        UsageError: as `read_json`, or it is another file; names the first field that is wrong.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(read_json(path, option))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise UsageError(f"{option} {path}: {place}: {fault['msg']}; write it again with: {writer}") from error


def read_profile(path: Path) -> tuple[Profile, Trace | None]:
    """What `gpualloc profile --json` printed, or the newest such file in a folder, with the trace of its first rank where that is kept.

    Raises:
        UsageError: not such a file, or none in the folder.
    """
    from gpualloc.errors import GpuallocError
    from gpualloc.profiling.records import Profile, Verdict, rank_from_json
    from gpualloc.profiling.trace import read_trace

    path = _newest_json(path) if path.is_dir() else path
    data = read_json(path, "--profile")
    try:
        if data["schema_version"] != 1:
            raise UsageError(f"--profile {path} has schema {data['schema_version']!r}, this gpualloc reads 1; upgrade gpualloc to read it")
        derived = ("overhead_ratio", "flops_per_s", "flops_per_step", "overlap_ratio")
        ranks = tuple(rank_from_json({name: value for name, value in rank.items() if name not in derived}) for rank in data["ranks"])
        verdict = Verdict(**{**data["verdict"], "evidence": tuple(data["verdict"]["evidence"])})
        profile = Profile(subject=str(data["subject"]), ranks=ranks, verdict=verdict)
        if not ranks or any(rank.times.step_time_s <= 0 for rank in ranks):
            raise ValueError("no rank with a step")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"--profile {path} is no profile: {error!r}; write one with: gpualloc profile --json > profile.json") from error
    trace_path = Path(profile.ranks[0].trace_path)
    for candidate in (trace_path, path.parent / trace_path.name):
        if candidate.is_file():
            try:
                return profile, read_trace(candidate)
            except GpuallocError:
                return profile, None  # damaged or moved: the bars stand without it
    return profile, None


def _newest_json(folder: Path) -> Path:
    files = [file for file in folder.glob("*.json") if not file.name.endswith(_TRACE_ENDINGS) and "trace" not in file.name]
    if not files:
        raise UsageError(f"--profile {folder} holds no profile; write one there with: gpualloc profile --json > {folder}/profile.json")
    return max(files, key=lambda file: file.stat().st_mtime)


def read_watched(path: Path, price: Price | None) -> Watched:
    """The last day of a watch store.

    Raises:
        StoreError: not a watch store.
        UsageError: nothing in it.
    """
    from gpualloc.watching import WatchStore, find_waste
    from gpualloc.watching.waste import WasteRule

    with WatchStore(path, create=False) as store:
        newest = max((watch.last_sample_unix_s or 0.0 for watch in store.watches()), default=0.0)
        samples = tuple(sample for _, sample in zip(range(_MAX_SAMPLES), store.samples(since_unix_s=newest - 86_400.0), strict=False))
    if not samples:
        raise UsageError(f"--watch {path} holds no samples; watch a job first with: gpualloc watch --store {path}")
    return Watched(samples=samples, waste=find_waste(samples, WasteRule(), price))
