"""Training as planned: resumed as if it had not stopped, on other ranks, in other precisions, and refused where it cannot be meant."""

import signal
import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import gpualloc.train
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.rehearsal import rehearsed
from gpualloc.train.sampler import ResumableSampler
from gpualloc.train.settings import read_place
from tests.ranks import run_ranks
from tests.rehearsal.clusters import make_rehearsal
from tests.train import silent_peer
from tests.train.scenarios import NUM_SAMPLES, prepare_different_models, train


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in (
        "STRATEGY",
        "PRECISION",
        "HOOK",
        "CHECKPOINT",
        "LEARNING_RATE_FACTOR",
        "GRAD_ACCUM_STEPS",
        "PER_DEVICE_BATCH_SIZE",
        "JOB_FOLDER",
    ):
        monkeypatch.delenv(f"GPUALLOC_{name}", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(world_size: int, settings: dict[str, str], **options: Any) -> list[dict[str, Any]]:
    if world_size == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.environ", {})  # what a launcher would set, and nothing of it kept
            return [train(0, 1, settings, **options)]
    return run_ranks(partial(train, **options), world_size, settings)


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name, weight in a["weights"].items():
        assert torch.equal(weight, b["weights"][name]), name


@pytest.mark.parametrize("hook", ["gpualloc_int8", "gpualloc_fp16"])
def test_a_job_stopped_by_a_signal_to_one_rank_goes_on_as_if_it_had_not(tmp_path: Path, hook: str) -> None:
    """Weights equal bit for bit: dropout, learning rate, AdamW's state, the order of samples.

    With int8 the first step of a new DDP has other buckets than later ones, so that other blocks of 256 share a scale: near, not equal.
    """
    whole = run(2, {"HOOK": hook})
    settings = {"HOOK": hook, "CHECKPOINT": str(tmp_path / "job.pt")}
    stopped = run(2, settings, stop_after=5, stopping_rank=1)
    assert [each["code"] for each in stopped] == [143, 143]
    assert stopped[0]["steps_done"] == stopped[1]["steps_done"] < 8
    resumed = run(2, settings)
    assert resumed[0]["first_step"] == stopped[0]["steps_done"]
    assert resumed[0]["steps_done"] == whole[0]["steps_done"] == 16
    for rank in range(2):
        assert stopped[rank]["seen"] + resumed[rank]["seen"] == whole[rank]["seen"]
        if hook == "gpualloc_fp16":
            assert_equal(whole[rank], resumed[rank])
        for name, weight in whole[rank]["weights"].items():  # a step of AdamW moves a weight by up to 1e-2
            torch.testing.assert_close(resumed[rank]["weights"][name], weight, atol=2e-2, rtol=0)
    assert_equal(resumed[0], resumed[1])


def test_a_checkpoint_is_for_another_strategy_and_number_of_ranks_too(tmp_path: Path) -> None:
    settings = {"CHECKPOINT": str(tmp_path / "job.pt")}
    ddp = run(2, settings, stop_after=2)
    fsdp = run(4, {**settings, "STRATEGY": "fsdp", "PER_DEVICE_BATCH_SIZE": "2"}, stop_after=ddp[0]["steps_done"] + 1)
    assert fsdp[0]["first_step"] == ddp[0]["steps_done"]
    for other in fsdp[1:]:
        assert_equal(fsdp[0], other)
    alone = run(1, {**settings, "STRATEGY": "single", "PER_DEVICE_BATCH_SIZE": "8"})
    assert alone[0]["steps_done"] == 16
    seen = [sorted(chain(*numbers)) for numbers in zip(*(each["seen"] for each in ddp), strict=True)]
    seen += [sorted(chain(*numbers)) for numbers in zip(*(each["seen"] for each in fsdp), strict=True)]
    seen += [sorted(numbers) for numbers in alone[0]["seen"]]
    for epoch in (seen[:8], seen[8:]):  # each sample once an epoch, whoever read it
        assert sorted(chain(*epoch)) == list(range(NUM_SAMPLES))


def test_accumulated_passes_are_one_step() -> None:
    whole = run(1, {"PER_DEVICE_BATCH_SIZE": "8"}, dropout=0.0)[0]
    parts = run(1, {"PER_DEVICE_BATCH_SIZE": "4", "GRAD_ACCUM_STEPS": "2"}, dropout=0.0)[0]
    assert (parts["steps_done"], len(parts["seen"])) == (whole["steps_done"], 2 * len(whole["seen"]))
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(parts["weights"][name], weight)
    both = run(2, {"PER_DEVICE_BATCH_SIZE": "2", "GRAD_ACCUM_STEPS": "2"}, dropout=0.0)
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(both[0]["weights"][name], weight)


def test_what_comes_out_of_the_model_is_fp32_under_autocast() -> None:
    full = run(1, {}, dropout=0.0)[0]
    half = run(1, {"PRECISION": "bf16"}, dropout=0.0)[0]
    pure = run(1, {"PRECISION": "pure_bf16"}, dropout=0.0)[0]
    assert (full["dtypes"], half["dtypes"], pure["dtypes"]) == ({torch.float32}, {torch.float32}, {torch.bfloat16})
    assert half["weights"]["0.weight"].dtype == torch.float32
    assert pure["weights"]["0.weight"].dtype == torch.bfloat16
    assert not torch.equal(full["weights"]["0.weight"], half["weights"]["0.weight"])


def test_the_learning_rate_is_the_present_plans(tmp_path: Path) -> None:
    settings = {"CHECKPOINT": str(tmp_path / "job.pt")}
    plain = run(1, {}, num_epochs=None, num_steps=10)[0]
    doubled = run(1, {"LEARNING_RATE_FACTOR": "2"}, num_epochs=None, num_steps=10)[0]
    assert doubled["lr"] == pytest.approx(2 * plain["lr"])
    run(1, {**settings, "LEARNING_RATE_FACTOR": "2"}, num_epochs=None, num_steps=5)
    assert run(1, settings, num_epochs=None, num_steps=10)[0]["lr"] == pytest.approx(plain["lr"])


@pytest.mark.parametrize(("num_samples", "position"), [(10, 0), (37, 12), (8, 8), (64, 5)])
def test_ranks_read_the_next_samples_of_one_order(num_samples: int, position: int) -> None:
    samplers = [ResumableSampler(num_samples, seed=3, rank=rank, world_size=2, samples_per_step=4) for rank in range(2)]
    for sampler in samplers:
        sampler.go_to(1, position)
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(4)).tolist()
    read = list(map(list, samplers))
    count = (num_samples - position) // 4 * 4
    assert [len(each) for each in read] == [len(each) for each in samplers] == [count // 2, count // 2]
    assert [number for pair in zip(*read, strict=True) for number in pair] == order[position : position + count]


def prepare(**options: Any) -> gpualloc.train.Training:
    model = nn.Linear(8, 1)
    inputs = torch.ones(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return gpualloc.train.prepare(
        model, optimizer, TensorDataset(inputs, inputs[:, :1]), **{"per_device_batch_size": 4, "num_steps": 2, **options}
    )


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"GPUALLOC_STRATEGY": "pipeline"}, {}, "takes gpualloc's own models apart; for a script choose one of single"),
        ({"GPUALLOC_PRECISION": "fp99"}, {}, "precision 'fp99' is unknown here; choose one of fp64, fp32"),
        ({}, {"hook": "zip", "strategy": "ddp"}, "hook 'zip' is unknown"),
        ({"GPUALLOC_HOOK": "torch_fp16"}, {}, "hook 'torch_fp16' is for ddp, not for single"),
        ({"GPUALLOC_PER_DEVICE_BATCH_SIZE": "0"}, {}, "per_device_batch_size is '0'"),
        ({"GPUALLOC_LEARNING_RATE_FACTOR": "nan"}, {}, "choose a number above 0"),
        ({}, {"strategy": "ddp"}, "needs ranks; start the script with: torchrun"),
        ({}, {"per_device_batch_size": 17}, "the data set has 16 samples and a step takes 17"),
        ({}, {"num_epochs": 1}, "give one of num_epochs"),
        ({}, {"precision": "tf32"}, "tf32 is a format of GPUs"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, {}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: this is half of torchrun's environment"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    environment: dict[str, str], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        prepare(**options)


def test_a_checkpoint_that_cannot_be_written_or_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    training = prepare(checkpoint=tmp_path / "file" / "job.pt")
    with pytest.raises(GpuallocError, match=r"cannot save the checkpoint .*File exists"):
        training.save()
    (tmp_path / "job.pt").write_bytes(b"PK\x03\x04 half of a file")
    with pytest.raises(GpuallocError, match=r"job.pt cannot be read: .*; move it aside to start anew"):
        prepare(checkpoint=tmp_path / "job.pt")


def test_different_models_on_the_ranks_are_told() -> None:
    for message in run_ranks(prepare_different_models, 2):
        assert message.startswith("the ranks have different models: ")
        assert message.endswith("; make the same layers on every rank")


def test_a_rank_whose_peer_is_silent_ends_within_its_timeout(tmp_path: Path) -> None:
    """A process waits at its end for its collectives on the way: a question with a longer timeout kept a rank whose link was cut."""
    command = [sys.executable, "-m", "tests.train.silent_peer", str(tmp_path / "rendezvous")]
    with subprocess.Popen([*command, "0"], stderr=subprocess.PIPE, text=True) as asking, subprocess.Popen([*command, "1"]) as silent:
        try:
            _, errors = asking.communicate(timeout=silent_peer.TIMEOUT_S + 30)  # to import torch, too
        finally:
            asking.kill()
            silent.kill()
    assert "timed out" in errors


def test_a_batch_without_a_step_is_told() -> None:
    training = prepare()
    with pytest.raises(GpuallocError, match=r"a batch was left without training.step"):
        list(training.batches())


def test_a_process_alone_needs_no_environment() -> None:
    assert not read_place({}).is_launched
    assert read_place({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}).rank == 1


def test_a_rehearsal_is_ranks_enough(tmp_path: Path) -> None:
    """`gpualloc rehearse -- train.py` of a script that trains by `prepare`: nobody set torchrun's variables."""
    model = nn.Linear(4, 2)
    data = TensorDataset(torch.rand(64, 4), torch.randint(2, (64,)))
    with rehearsed(make_rehearsal(tmp_path, 4)):
        training = gpualloc.train.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), data, num_epochs=1, per_device_batch_size=4)
        for inputs, targets in training.batches():
            training.step(nn.functional.cross_entropy(training.model(inputs), targets))
    assert training.steps_done == 4  # of 16 samples each
