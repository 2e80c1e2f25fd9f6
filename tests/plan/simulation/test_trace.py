"""Traces, tables of steps and clusters from files: what they hold, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpualloc.errors import UsageError
from gpualloc.plan.simulation.clusters import load_cluster
from gpualloc.plan.simulation.job_types import assumed_job_types, measured_job_types
from gpualloc.plan.simulation.throughput import read_measured
from gpualloc.plan.simulation.trace import TraceJob, read_trace

TYPES = assumed_job_types()


def write(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_a_trace_by_job_type_and_one_by_gpu_hours(tmp_path: Path) -> None:
    trace = read_trace(
        write(tmp_path, "job_id,submit_time_s,job_type,max_gpus,gpu_types,weight\na,0,bert,8,a100;t4,2\nb,9.5,cifar10,,,\n"), TYPES
    )
    assert trace == (
        TraceJob(job_id="a", submit_s=0.0, job_type="bert", max_gpus=8, gpu_types=("a100", "t4"), weight=2.0),
        TraceJob(job_id="b", submit_s=9.5, job_type="cifar10"),
    )
    philly = read_trace(write(tmp_path, "job_id,submit_time_s,num_gpus,duration_s\na,0,1,600\nb,1,8,36000\nc,2,16,90000\n"), TYPES)
    assert [job.job_type for job in philly] == ["cifar10", "yolov3", "imagenet"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ":1: lacks job_id"),
        ("job_id,submit_time_s,job_type\n", "no job in it"),
        ("job_id,submit_time_s\na,0\n", ":1: lacks job_type, or num_gpus and duration_s"),
        ("job_id,submit_time_s,job_typ\na,0,bert\n", ":1: column 'job_typ' is unknown.*did you mean job_type"),
        ("job_id,submit_time_s,job_type\na,0,bert\nb,-1,bert\n", ":3: submit_time_s is '-1'"),
        ("job_id,submit_time_s,job_type\na,0,gpt9\n", ":2: job_type 'gpt9' is unknown; choose one of cifar10"),
        ("job_id,submit_time_s,job_type\na,nan,bert\n", ":2: submit_time_s is 'nan'"),
        ("job_id,submit_time_s,job_type\na,0,bert\na,1,bert\n", ":3: job_id 'a' stands in an earlier line"),
        ("job_id,submit_time_s,job_type\n,0,bert\n", ":2: job_id is empty"),
        ("job_id,submit_time_s,job_type,min_gpus,max_gpus\na,0,bert,8,4\n", ":2: min_gpus 8 is above max_gpus 4"),
        ("job_id,submit_time_s,job_type,max_gpus\na,0,bert,1.5\n", ":2: max_gpus is '1.5'; give a whole number"),
        ("job_id,submit_time_s,job_type\na,0,bert,9\n", ":2: more fields than"),
        ("job_id,submit_time_s,num_gpus,duration_s\na,0,,60\n", ":2: num_gpus is ''"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_trace(write(tmp_path, text), TYPES)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "none.csv", TYPES)


STEPS = "model,num_nodes,num_gpus,per_device_batch_size,step_time_s,sync_time_s\n"


def test_measured_steps_are_interpolated_between_batches_and_between_whole_nodes(tmp_path: Path) -> None:
    rows = "m,1,1,10,1.0,0\nm,1,1,30,2.0,0\nm,2,8,10,2.0,0.5\nm,2,8,10,4.0,1.5\nm,8,32,10,7.0,2.0\n"
    steps = read_measured(write(tmp_path, STEPS + rows))["m"]
    import numpy as np

    assert steps.at((1, 1), np.array([20.0]))[0].tolist() == [1.5]
    assert [part.tolist() for part in steps.at((2, 8), np.array([10.0]))] == [[3.0], [1.0]]  # the median of two
    assert steps.at((4, 16), np.array([10.0]))[0].tolist() == pytest.approx([5.0])  # half way in the logarithm
    assert np.isnan(steps.at((16, 64), np.array([10.0]))[0]).all()
    assert steps.local_batch_range == (10.0, 30.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model,num_nodes\n", ":1: lacks num_gpus"),
        (STEPS + "m,1,1,10,0.1,0.2\n", ":2: .*is no measured step"),
        (STEPS + "m,1,1,10,x,0\n", ":2: .*is no measured step"),
        (STEPS + "m,2,8,10,1,0\n", "m has no row on one node"),
        (STEPS, "no model has no row"),
    ],
)
def test_errors_of_measured_steps(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_measured(write(tmp_path, text))


def test_a_folder_of_rates(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no CSV file"):
        measured_job_types(tmp_path)
    write(tmp_path, STEPS + "bert,1,1,12,1.0,0\nother,1,1,10,1.0,0\n", "aws.csv")
    types = measured_job_types(tmp_path)
    assert list(types) == ["bert"]
    assert types["bert"].goodputs("t4", ((1, 1),)).max() > 0
    assert types["bert"].goodputs("a100", ((1, 1),)).max() == 0


def test_more_gpus_and_better_ones_are_faster_and_less_efficient() -> None:
    for kind in TYPES.values():
        hours = {(gpu, count): kind.duration_s(gpu, (1, count)) / 3600 for gpu in ("t4", "a100") for count in (1, 2, 4)}
        assert hours["a100", 1] < hours["t4", 1]
        for gpu in ("t4", "a100"):
            assert hours[gpu, 4] < hours[gpu, 2] < hours[gpu, 1] <= 4.2 * hours[gpu, 4]


def test_clusters(tmp_path: Path) -> None:
    cluster, prices = load_cluster("mixed64")
    assert (cluster.num_gpus, len(cluster.nodes), prices) == (64, 11, {})
    text = "nodes:\n- {gpu_type: h100, nodes: 2, gpus_per_node: 8, price_per_gpu_hour: 2.5}\n- {gpu_type: t4, nodes: 1, gpus_per_node: 4}\n"
    cluster, prices = load_cluster(str(write(tmp_path, text, "c.yaml")))
    assert (cluster.num_gpus, prices) == (20, {"h100": 2.5})
    for wrong, words in (
        ("nodes: []", "nodes"),
        ("nodes: [{gpu_type: t4, nodes: 0, gpus_per_node: 4}]", r"nodes\[0\].nodes: input should be greater than or equal to 1, not 0"),
        ("nodes: [{gpu_type: t4, nodes: 1, gpus_per_node: 4, price: 3}]", r"nodes\[0\].price: extra"),
        ("- [", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=words):
            load_cluster(str(write(tmp_path, wrong, "wrong.yaml")))
    with pytest.raises(UsageError, match="neither a preset"):
        load_cluster("mixed65")
