"""Data, and real trainings: in this process, and as ranks of gloo."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from gpualloc.errors import StoreError, UsageError
from gpualloc.quality.data import open_split
from gpualloc.quality.engine import run_trainings, summarise
from gpualloc.quality.messages import TrainingOrder, TrainingReport
from gpualloc.quality.options import QualityOptions, plan_runs
from gpualloc.quality.records import Experiment, TrainingRun, experiment_to_json, read_experiment, write_experiment
from gpualloc.quality.training import train_rank
from gpualloc.records import BenchCase
from tests.quality.experiments import alone, made_run, plan_tiny_text
from tests.store.sample_measurements import CPU_ENVIRONMENT, image_case, llm_case

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As a rank has; threads that wait for each other make tiny models slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_are_split_and_ranks_do_not_overlap() -> None:
    case = image_case(image_size_px=8, per_device_batch_size=100, data="digits")
    splits = [open_split(case, rank=rank, device=CPU) for rank in (0, 1)]
    assert len(splits[0].test[0]) == 1797 // 3
    epoch = [images for split in splits for images, _ in islice(split.train, 5)]  # 5 steps of 2 x 100 of the 1198
    assert len(rows(torch.cat(epoch))) > 990  # a few digits are there twice
    assert not rows(torch.cat(epoch)) & rows(splits[0].test[0]) - _digits_there_twice()
    other_seed = open_split(replace(case, seed=1), rank=0, device=CPU)
    assert torch.equal(other_seed.test[0], splits[0].test[0])
    assert not torch.equal(next(other_seed.train)[1], epoch_labels(case))


def _digits_there_twice() -> set[bytes]:
    from gpualloc.workloads.images import Digits

    images = Digits(image_size_px=8)[list(range(1797))][0]
    counts: dict[bytes, int] = {}
    for image in images:
        counts[image.numpy().tobytes()] = counts.get(image.numpy().tobytes(), 0) + 1
    return {image for image, count in counts.items() if count > 1}


def epoch_labels(case: BenchCase) -> torch.Tensor:
    return next(open_split(case, rank=0, device=CPU).train)[1]


def test_text_is_english_and_part_of_it_is_held_out() -> None:
    case = llm_case(sequence_length=200, per_device_batch_size=2, data="pydoc_topics")
    split = open_split(case, rank=0, device=CPU)
    tokens, targets = next(split.train)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert b" the " in bytes(split.test[0].flatten().to(torch.uint8).tolist())
    seen = b"".join(bytes(part.to(torch.uint8).tolist()) for batch, _ in islice(split.train, 300) for part in batch)
    assert sum(bytes(window[:60].to(torch.uint8).tolist()) in seen for window in split.test[0]) <= 2  # of 64
    again, _ = next(open_split(case, rank=0, device=CPU).train)
    other_rank, _ = next(open_split(case, rank=1, device=CPU).train)
    assert torch.equal(tokens, again)
    assert not torch.equal(tokens, other_rank)


def test_too_large_a_batch_or_sequence_is_refused() -> None:
    with pytest.raises(UsageError, match="1200 digits and 1198 are there"):
        open_split(image_case(image_size_px=8, per_device_batch_size=600), rank=0, device=CPU)
    with pytest.raises(UsageError, match="held-out text"):
        open_split(llm_case(sequence_length=100_000), rank=0, device=CPU)


def order_of(case: BenchCase, learning_rate: float, num_points: int = 4) -> TrainingOrder:
    return TrainingOrder(case=case, learning_rate=learning_rate, num_points=num_points, timeout_s=60)


def test_training_learns_and_repeats_itself() -> None:
    case = replace(alone(plan_tiny_text()[0]), num_steps=20)
    first, again = (train_rank(order_of(case, 2e-3), rank=0, device=CPU) for _ in range(2))
    assert first.steps == [5, 10, 15, 20]
    assert (first.train_losses, first.test_losses) == (again.train_losses, again.test_losses)
    assert first.train_losses[-1] < first.train_losses[0] - 1
    assert first.test_losses[-1] < first.test_losses[0] - 0.5
    assert first.test_accuracies is None


def test_images_have_an_accuracy() -> None:
    (plan, *_) = plan_runs(QualityOptions(device="cpu", workloads=("image",), hooks=("none",)), num_gpus=0)
    case = replace(alone(plan), num_steps=3, per_device_batch_size=8)
    report = train_rank(order_of(case, 0.01, num_points=2), rank=0, device=CPU)
    run = summarise(case, 0.01, [report])
    assert report.test_accuracies is not None
    assert len(run.curve) == 2
    assert all(0 <= (point.test_accuracy or 0) <= 1 for point in run.curve)


def test_two_ranks_train_and_too_high_a_rate_diverges() -> None:
    (plan, *_) = plan_tiny_text()
    hooked = replace(plan, cell=replace(plan.cell, case=replace(plan.cell.case, hook="gpualloc_int8")))
    wild = replace(plan, learning_rate=1e30)
    heard: list[int] = []
    runs = run_trainings([plan, hooked, wild], timeout_s=120, progress=lambda number, run: heard.append(number))
    none, int8, diverged = runs
    assert heard == [0, 1, 2]
    assert (none.status, int8.status) == ("ok", "ok")
    assert (none.curve[-1].train_loss or 9) < (none.curve[0].train_loss or 0)
    assert none.curve != int8.curve
    assert (int8.wire_bytes_per_step or 0) < (none.wire_bytes_per_step or 0) / 3
    assert (none.step_time_s or 0) > 0
    assert diverged.status == "diverged"
    assert diverged.reason is not None
    assert "inf or NaN in the loss by step" in diverged.reason
    assert run_trainings([plan, wild], timeout_s=0.1, finished=runs) == [none, diverged]  # nothing is run again


def test_a_training_that_fails_is_reported() -> None:
    (plan, *_) = plan_tiny_text()
    (run,) = run_trainings([plan], timeout_s=0.3)
    assert run.status == "failed"
    assert "not finished after 0.3 s" in (run.reason or "")


def report(losses: list[float]) -> TrainingReport:
    return TrainingReport(
        steps=[10, 20, 30],
        train_losses=losses,
        test_losses=losses,
        test_accuracies=None,
        stretch_times_s=[1.0, 0.2, 0.3],
        wire_bytes_per_step=4,
        nonfinite_steps=None,
    )


def test_runs_are_of_the_slowest_rank_and_of_all_losses() -> None:
    slow = replace(report([5.0, 4.0, 3.0]), stretch_times_s=[1.0, 0.4, 0.4])
    run = summarise(llm_case(), 0.1, [report([3.0, 2.0, 1.0]), slow])
    assert run.step_time_s == pytest.approx(0.04)  # without the first stretch
    assert run.train_time_s == pytest.approx(1.8)
    assert [point.train_loss for point in run.curve] == [4.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([3.0, float("nan"), 1.0], "inf or NaN in the loss by step 20 of 30"),
        ([3.0, 2.0, float("inf")], "inf or NaN in the loss by step 30 of 30"),
        ([3.0, 4.0, 5.0], "the training loss rose from 3.000 to 5.000"),
    ],
)
def test_divergence_has_a_reason(losses: list[float], reason: str) -> None:
    run = summarise(llm_case(), 0.1, [report(losses)])
    assert (run.status, run.reason) == ("diverged", reason)


def test_experiments_survive_the_file(tmp_path: Path) -> None:
    lost = summarise(llm_case(seed=1), 0.1, [report([3.0, float("nan"), 1.0])])
    skipped = TrainingRun(case=llm_case(precision="bf16"), learning_rate=0.1, status="skipped", reason="no bf16")
    experiment = Experiment(environment=CPU_ENVIRONMENT, runs=(made_run(0.9, seed=0), lost, skipped))
    write_experiment(tmp_path / "e.json", experiment)
    assert read_experiment(tmp_path / "e.json") == experiment
    assert experiment_to_json(experiment)["schema_version"] == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "environment": {}, "runs": []}'])
def test_files_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"broken\.json"):
        read_experiment(path)
    with pytest.raises(StoreError, match="cannot be written"):
        write_experiment(tmp_path / "missing" / "e.json", Experiment(environment=CPU_ENVIRONMENT, runs=()))
