"""The comparison of hooks: the script as it is called, and its arithmetic on made figures."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare_hooks, comparison_table, network_lab
from benchmarks.compare_rank import COMPUTE, ComparisonReport, HookFigures
from benchmarks.compared_models import COMPARED_MODELS

pytestmark = pytest.mark.clock

ROOT = Path(__file__).parents[2]
NUM_PARAMETERS = sum(parameter.numel() for parameter in COMPARED_MODELS["mlp"].build().parameters())
SHORT = ["--models", "mlp", "--rounds", "2", "--steps", "2", "--warmup", "4", "--max-warmup", "4"]


def run(folder: Path, *arguments: str, exit_code: int = 0) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(the JSON, hook -> its row in the only case, stdout)."""
    output = folder / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks/compare_hooks.py"), *SHORT, "--output", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == exit_code, done.stderr
    result = json.loads(output.read_text())
    (case,) = result["cases"]
    return result, {row["hook"]: row for row in case["hooks"]}, done.stdout


def test_hooks_run_side_by_side_and_a_refused_one_is_skipped(tmp_path: Path) -> None:
    hooks = "none,torch_fp16,torch_bf16,gpualloc_fp16:wire_scale=dynamic,gpualloc_fp99"
    result, rows, table = run(tmp_path, "--local", "2", "--hooks", hooks)
    assert list(rows) == hooks.split(",")
    for hook, width in (("none", 4), ("torch_fp16", 2), ("gpualloc_fp16:wire_scale=dynamic", 2)):
        row = rows[hook]
        assert row["status"] == "ok"
        assert row["wire_bytes_per_step"] == width * NUM_PARAMETERS
        assert len(row["round_step_ms"]) == 2
        assert 0 < row["step_ms"]["p10"] <= row["step_ms"]["median"] <= row["step_ms"]["p90"]
    assert [line.split()[0] for line in table.splitlines() if line.startswith(("none", "torch_fp16"))] == ["none", "torch_fp16"]
    assert rows["gpualloc_fp16:wire_scale=dynamic"]["stats"]["wire"] == "fp16"
    assert rows["torch_bf16"]["status"] == "skipped"
    assert "wire='fp99' is not one of" in rows["gpualloc_fp99"]["reason"]
    assert "wire='fp99' is not one of" in table
    assert result["interleaved"] is True
    assert result["environment"]["torch_version"]
    assert result["cases"][0]["compute_ms"] > 0


def test_a_hook_that_dies_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    dying = "tests.benchmarks.hooks:dies_on_rank_1"
    _, rows, table = run(tmp_path, "--local", "2", "--hooks", f"{dying},none", "--one-at-a-time", exit_code=1)
    assert rows["none"]["status"] == "ok"
    assert rows[dying]["status"] == "failed"
    assert f"{dying}  failed: died in the turn of {dying}: rank " in table


@pytest.mark.netlab
def test_in_a_lab_the_interface_counts_what_the_hook_says(tmp_path: Path) -> None:
    """A ring of two sends as many bytes as it reduces. TCP adds at least 66 to 1448; acknowledgements and the barrier of a block add less
    than a tenth more."""
    result, rows, _ = run(tmp_path, "--lab", "2", "--rate", "1gbit", "--hooks", "none,gpualloc_fp16")
    for row in rows.values():
        assert 1 < row["link_bytes_per_step"] / row["wire_bytes_per_step"] < 1.15
    assert max(result["cases"][0]["measured_mbit_s"]) < 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--local", "2", "--hooks", "fp16"], "hook 'fp16'; choose of none, torch_fp16"),
        (["--local", "2", "--models", "vgg"], "unknown: vgg; choose of mlp"),
        (["--local", "2", "--lab", "2"], "not allowed with"),
        (["--local", "0"], "0 ranks"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_hooks.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        compare_hooks.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_ranks_that_share_a_gpu_look_like_hosts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_hooks, "count_gpus", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["compare_hooks.py", "--nccl-ranks", "2,4"])
    two, four = compare_hooks.placements(compare_hooks.parse_arguments(None, default_hooks=["none"]))
    assert (two.world_size, two.ranks_per_gpu, four.world_size, four.ranks_per_gpu) == (2, 2, 4, 4)
    assert two.has_daemon
    environments = [four.environment(rank) for rank in range(4)]
    assert len({environment["NCCL_HOSTID"] for environment in environments}) == 4
    assert {environment["NCCL_SOCKET_IFNAME"] for environment in environments} == {"lo"}


def test_ranks_on_cores_see_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's PowerSGD dies on CPU tensors where it sees one."""
    monkeypatch.setattr(compare_hooks.network_lab, "network_lab", lambda num_hosts, rate, name: nullcontext(MadeLab()))
    for where in ("--local", "--lab"):
        monkeypatch.setattr(sys, "argv", ["compare_hooks.py", where, "2"])
        (placement,) = compare_hooks.placements(compare_hooks.parse_arguments(None, default_hooks=["none"]))
        assert placement.backend == "gloo"
        assert placement.environment(1)["CUDA_VISIBLE_DEVICES"] == ""
        assert "PATH" in placement.environment(1)


class MadeLab(network_lab.Lab):
    """One that is not up."""

    def __init__(self) -> None:
        super().__init__(name="made", num_hosts=2, rate_bit_s=None)

    def measure(self) -> list[network_lab.Flow]:
        return []


def test_ratios_are_formed_within_rounds() -> None:
    """The second of three rounds is twice as slow as a whole: no ratio moves."""
    blocks_ms = {COMPUTE: [10, 20, 10], "none": [30, 60, 30], "torch_fp16": [20, 40, 20], "gpualloc_auto": [15, 30, 15]}
    report = ComparisonReport(
        hooks={
            **{hook: HookFigures(block_step_times_s=[ms / 1e3 for ms in times]) for hook, times in blocks_ms.items()},
            "torch_bf16": HookFigures(skip_reason="refused"),
        }
    )
    rows = {
        row["hook"]: row for row in comparison_table.rows(report, ["none", "torch_fp16", "gpualloc_auto", "torch_bf16", "x"], {"x": "died"})
    }
    auto = rows["gpualloc_auto"]
    assert auto["step_ms"]["median"] == pytest.approx(15)
    assert auto["step_ms"]["p90"] == pytest.approx(27)  # of 15, 15 and 30, interpolated
    assert auto["exposed_ms"]["median"] == pytest.approx(5)
    assert auto["best_fixed"] == "torch_fp16"
    for name, ratio in (("ratio_to_none", 0.5), ("ratio_to_best_fixed", 0.75)):
        assert [auto[name][which] for which in ("p10", "median", "p90")] == pytest.approx([ratio] * 3)
    assert auto["exposed_ratio_to_torch_fp16"] == pytest.approx(0.5)
    assert [rows[hook]["status"] for hook in ("torch_bf16", "x")] == ["skipped", "failed"]
    assert comparison_table.compute_ms(report) == pytest.approx(10)


def test_nothing_is_divided_by_no_exposure() -> None:
    report = ComparisonReport(hooks={name: HookFigures(block_step_times_s=[0.01]) for name in (COMPUTE, "torch_fp16")})
    (row,) = comparison_table.rows(report, ["torch_fp16"], {})
    assert row["exposed_ratio_to_torch_fp16"] is None
    assert row["ratio_to_none"] is None
