"""Every record with JSON of its own comes back as it went, whatever its fields hold."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpualloc.launch.progress import Progress, read_progress, write_progress
from gpualloc.plan.records import Plan, plan_from_json, plan_to_json
from gpualloc.profiling.records import RankProfile, rank_from_json, rank_to_json
from gpualloc.quality.records import Experiment, read_experiment, write_experiment
from gpualloc.records import Measurement, from_json, to_json

MANY = int(os.environ.get("GPUALLOC_FUZZ_EXAMPLES", "0"))  # of each record; 0: a few


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type; the fields of records one by one, those with a default, too."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{field.name: of_type(hints[field.name]) for field in dataclasses.fields(kind) if field.init})
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(of_type, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(of_type(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of_type, arguments))
    if origin in (dict, Mapping):
        return st.dictionaries(of_type(arguments[0]), of_type(arguments[1]), max_size=2)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=8),
        object: st.none(),
    }
    return simple[kind] if kind in simple else st.from_type(kind)


def _experiment(experiment: Experiment, folder: Path) -> Experiment:
    write_experiment(folder / "experiment.json", experiment)
    return read_experiment(folder / "experiment.json")


def _progress(progress: Progress, folder: Path) -> Progress | None:
    positive = dataclasses.replace(
        progress, samples_per_step=abs(progress.samples_per_step) + 1, step_times_s=tuple(abs(time) + 1 for time in progress.step_times_s)
    )
    write_progress(folder, positive)
    return progress if read_progress(folder) == positive else None


ROUND_TRIPS: dict[type, Callable[[Any, Path], Any]] = {
    Measurement: lambda record, _: from_json(json.loads(json.dumps(to_json(record)))),
    Plan: lambda record, _: plan_from_json(json.loads(json.dumps(plan_to_json(record))), file="plan.json"),
    RankProfile: lambda record, _: rank_from_json(json.loads(json.dumps(rank_to_json(record)))),
    Experiment: _experiment,
    Progress: _progress,
}


@pytest.mark.parametrize("kind", ROUND_TRIPS, ids=lambda kind: kind.__name__)
def test_a_record_comes_back_from_json(kind: type, tmp_path: Path) -> None:
    @settings(max_examples=MANY or 15, deadline=None, derandomize=not MANY, suppress_health_check=list(HealthCheck))
    @given(record=of_type(kind))
    def comes_back(record: Any) -> None:
        assert ROUND_TRIPS[kind](record, tmp_path) == record

    comes_back()
