"""`gpualloc profile`: built-in workloads end to end, refusals, and the printed table."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from gpualloc.cli.profile import profile
from gpualloc.cli.profile_text import print_profile
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.profiling.records import Profile, RankProfile
from gpualloc.profiling.verdict import judge
from tests.profiling.made_profiles import made_cpu_rank, made_rank, made_times

app = typer.Typer()
app.command()(profile)
ROOT = Path(__file__).parents[2]
TINY = ["--model", "gpt_tiny", "--sequence-length", "16", "--batch-size", "2", "--device", "cpu", "--steps", "3", "--warmup", "1"]


def run(*arguments: str, raises: type[GpuallocError] | None = None) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    if raises is None:
        assert done.exit_code == 0, (done.output, done.exception)
    else:
        assert isinstance(done.exception, raises), (done.output, done.exception)
    return done


@pytest.mark.parametrize(("strategy", "num_ranks"), [("single", 1), ("ddp", 2)])
def test_a_built_in_workload(tmp_path: Path, strategy: str, num_ranks: int) -> None:
    done = run(*TINY, "--strategy", strategy, "--trace-dir", str(tmp_path), "--json")
    data = json.loads(done.stdout)
    assert data["schema_version"] == 1
    assert [rank["rank"] for rank in data["ranks"]] == list(range(num_ranks))
    for rank in data["ranks"]:
        assert (rank["num_steps"], rank["world_size"], rank["device"]) == (3, num_ranks, "cpu")
        assert rank["times"]["kernels_s"] > 0
        assert rank["flops_per_step"] > 1e6
        assert (rank["times"]["exposed_comm_s"] > 0) == (num_ranks > 1)
        assert Path(rank["trace_path"]).read_bytes()[:2] == b"\x1f\x8b"
    assert data["verdict"]["sentence"].startswith(data["verdict"]["kind"])
    for stage in ("profiling gpt_tiny 16tok fp32", "warming up for 1 steps", "tracing 3 steps", "counting"):
        assert stage in done.stderr


def test_gpuallocs_hook_times_what_the_trace_does_not_show(tmp_path: Path) -> None:
    arguments = [*TINY, "--steps", "8", "--strategy", "ddp", "--hook", "gpualloc_fp16", "--trace-dir", str(tmp_path), "--json"]
    (rank, _) = json.loads(run(*arguments).stdout)["ranks"]
    assert rank["times"]["exposed_comm_s"] > 0
    assert any("as the hook timed it" in note for note in rank["notes"])


def test_traces_are_kept_beside_the_results_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "results.sqlite"))
    monkeypatch.setenv("COLUMNS", "100")
    done = run(*TINY)
    (trace,) = (tmp_path / "traces").glob("*/rank0.json.gz")
    assert str(trace) in done.stdout
    assert max(map(len, done.stdout.replace(str(trace), "").splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--model", "gpt_tiny,gpt_small"], "these options name 2"),
        (["--device", "cpu", "--precision", "fp8"], "cannot be profiled here: fp8 is a format of GPUs"),
        (["--device", "cpu", "--model", "gpt9"], "gpt9"),
        (["--device", "tpu"], "--device 'tpu' is unknown"),
        (["--steps", "0"], "--steps 0 is out of range; choose 1 to 1,000"),
        (["--warmup-steps", "0"], "--warmup-steps 0 is out of range"),
        (["--timeout-s", "0"], "--timeout-s 0 is out of range"),
        (["--no-stop"], "--no-stop is for a script"),
        (["--model", "gpt_tiny", "--", "train.py"], "--model is for a built-in workload and a script is given"),
        (["--timeout-s", "9", "--", "train.py"], "--timeout-s is for a built-in workload"),
        (["--", "nowhere.py"], "the script 'nowhere.py' does not exist"),
        (["--device", "cpu", "--batch-size", "many"], "--batch-size 'many' is not a list of whole numbers"),
    ],
)
def test_refusals_come_before_anything_runs(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in str(run("--trace-dir", str(tmp_path), *arguments, raises=UsageError).exception)
    assert list(tmp_path.iterdir()) == []


def test_a_settings_file_for_built_in_workloads_leaves_scripts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUALLOC_PROFILE_SEED", "1")
    (tmp_path / "gpualloc.toml").write_text('[profile]\nmodel = "gpt_tiny"\n')
    assert "'nowhere.py' does not exist" in str(run("--", "nowhere.py", raises=UsageError).exception)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = run(*TINY, "--trace-dir", str(tmp_path / "file" / "traces"), raises=GpuallocError).exception
    assert "name another one with --trace-dir" in str(error)


def test_a_failing_rank_is_named(tmp_path: Path) -> None:
    error = run(*TINY, "--timeout-s", "0.2", "--trace-dir", str(tmp_path), raises=GpuallocError).exception
    assert "not finished after 0.2 s: rank 0" in str(error)


def test_a_failing_rank_under_torchrun_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import os\nassert os.environ['RANK'] == '0', 'only rank 0 trains'\n" + TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable, "-c"]
    command += ["from gpualloc.cli.app import main; main()", "profile", "--steps", "1", "--warmup", "1", "--", str(script)]
    environment = {**os.environ, "GPUALLOC_STORE": str(tmp_path / "results.sqlite"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode != 0
    assert "AssertionError: only rank 0 trains after 0 steps" in done.stderr
    assert done.stdout == ""


TRAIN = """
import torch
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(100):
    model(torch.ones(4, 8)).sum().backward()
    optimizer.step()
"""


def render(width: int, *ranks: RankProfile) -> str:
    text = io.StringIO()
    subject = "mobilenet_v2 224px bf16 ddp/none x2, 64 per rank, cuda"
    print_profile(Profile(subject=subject, ranks=ranks, verdict=judge(ranks)), Console(file=text, width=width))
    return text.getvalue()


TIMES = made_times(kernels_s=0.0421, optimizer_s=0.002, exposed_comm_s=0.011, launch_gap_s=0.004, hidden_comm_s=0.003, num_launches=800)
GPU_RANKS = [made_rank(TIMES, world_size=2), made_rank(replace(TIMES, kernels_s=0.0431), rank=1, world_size=2)]


@pytest.mark.parametrize("width", [60, 80, 100, 160, 200])
def test_no_line_is_wider_than_the_console_and_no_figure_is_cut(width: int) -> None:
    for ranks in (GPU_RANKS, GPU_RANKS[:1], [made_cpu_rank(TIMES)]):
        text = render(width, *ranks)
        assert max(map(len, text.splitlines())) <= width
        for figure in ("kernels" if ranks[0].device == "cuda" else "operators", "11.00", "3.00", "/traces/rank0.json.gz", "20.0 GiB"):
            assert figure in text


def words(width: int, *ranks: RankProfile) -> str:
    return " ".join(render(width, *ranks).split())


def test_the_table_says_what_the_records_say() -> None:
    text = words(120, *GPU_RANKS)
    assert "kernels 42.60 71.5% 42.10 43.10" in text
    assert "exposed communication 11.00 18.5% 11.00 11.00" in text
    assert "whole step 59.60 100.0% 59.10 60.10" in text
    assert "rank 1, NVIDIA H200: busy 90% of the step, SMs 80%, tensor cores 50%, DRAM bandwidth 30%" in text
    assert "memory: 20.0 GiB allocated at most, 115.0 GiB of 140.0 GiB to spare" in text
    assert "1000.00 GFLOP a step (bf16), 16.6 TFLOP/s, MFU 30.0% of the dense peak (NVIDIA H200 data sheet, 2024-11)" in text
    assert "profiler: 60.10 ms a step without, 63.11 ms with it (+5.0%); what it adds is taken off the gaps" in text
    assert "and 1 more beside it" in text


def test_unknown_hardware_gets_no_mfu_and_a_cpu_no_copies() -> None:
    text = words(120, made_cpu_rank(TIMES, profiled_step_time_s=TIMES.step_time_s * 0.98, notes=("a note",)))
    assert "MFU unknown: no peak is known for this device; 85% of what a large fp32 product reaches here" in text
    assert "copies" not in text
    assert "Python and dispatch 4.00" in text
    assert "(-2.0%, hidden by other variation)" in text
    assert "a note" in text
    assert "arithmetic: not counted" in words(120, made_cpu_rank(TIMES, costs=None))


def test_no_counters_is_said_with_the_reason() -> None:
    from gpualloc.profiling.records import Utilisation

    unsupported = Utilisation(gpu=0.9, sm=None, tensor=None, dram=None, reason="this GPU has no GPM counters")
    text = words(120, made_rank(TIMES, utilisation=unsupported))
    assert "no SM, tensor and DRAM counters: this GPU has no GPM counters" in text
    assert "SMs" not in text


def test_hostile_names_print_as_text() -> None:
    hostile: Any = replace(made_rank(TIMES), device_name="[bold]\x1b[31mGPU", notes=("a\nb[/red]",))
    text = render(100, hostile)
    assert "\x1b" not in text
    assert "[bold]\\x1b[31mGPU" in text
    assert "a b[/red]" in text
