"""`gpualloc rehearse` and `gpualloc calibrate` as a user runs them, on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.errors import UsageError
from gpualloc.rehearsal.link_model import load_link, write_link
from tests.rehearsal.clusters import make_link

pytestmark = pytest.mark.clock

TRAIN = """
import sys, torch, torch.distributed as dist
from torch import nn
torch.set_num_threads(1)
dist.init_process_group()
print("started with", sys.argv[1:])
model = nn.parallel.DistributedDataParallel(nn.Linear(500, 500))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(int(sys.argv[1])):
    optimizer.zero_grad()
    model(torch.randn(4, 500)).square().mean().backward()
    optimizer.step()
"""


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "store" / "results.sqlite"))


@pytest.fixture
def script(tmp_path: Path) -> str:
    file = tmp_path / "train.py"
    file.write_text(TRAIN)
    return str(file)


@pytest.fixture
def link(tmp_path: Path) -> str:
    """0.1 GB/s: a gradient of 1 MB takes 10 ms of two ranks, 15 of four."""
    file = tmp_path / "slow.yaml"
    write_link(make_link(busbw_gb_s=0.1), file)
    return str(file)


def run(*arguments: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == exit_code, done.output
    return done


def test_the_wire_is_waited_for_and_grows_with_the_gpus(script: str, link: str) -> None:
    done = run("rehearse", "--gpus", "4,1,2", "--link", link, "--steps", "5", "--warmup-steps", "3", "--json", "--", script, "1000")
    result = json.loads(done.stdout)
    assert [size["num_gpus"] for size in result["sizes"]] == [1, 2, 4]
    alone, two, four = (size["steps"] for size in result["sizes"])
    assert alone["comm_time_s"] == 0
    assert two["comm_time_s"] == pytest.approx(10.1e-3, rel=0.05)
    assert four["comm_time_s"] == pytest.approx(15.1e-3, rel=0.05)
    assert two["comm_bytes"] == pytest.approx(4 * 250_500, rel=0.01)
    assert four["step_time_s"] - four["compute_time_s"] == pytest.approx(15e-3, rel=0.5)
    assert result["sizes"][0]["speedup"] == 1
    assert "started with" in done.stderr or "started with" not in done.stdout


def test_a_table_names_the_link_and_what_is_not_in_it(script: str, link: str) -> None:
    done = run("rehearse", "--gpus", "1,2", "--link", link, "--steps", "2", "--warmup-steps", "2", "--", script, "100")
    assert "round figures" in done.stdout
    assert "Not in the figures" in done.stdout
    assert "weak scaling" in done.stdout


def test_a_script_that_ends_too_soon_says_so(script: str, link: str) -> None:
    done = run("rehearse", "--gpus", "2", "--link", link, "--steps", "50", "--", script, "20", exit_code=1)
    assert "ended after 20 optimizer steps" in done.stdout
    assert "Traceback" not in done.stderr  # of ours: the script has done nothing wrong
    assert "started with" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus 0 is out of range"),
        (["--gpus", "two"], "not a list of whole numbers"),
        (["--link", "nvlink9"], "no link 'nvlink9'"),
        (["--steps", "0"], "--steps 0 is out of range"),
        (["--link", "nvlink4", "--gpus", "16"], "--network"),
    ],
)
def test_refusals_come_before_anything_runs(arguments: list[str], message: str, script: str) -> None:
    given = ["--link", "nvlink4"] if "--link" not in arguments else []
    done = run("rehearse", *given, *arguments, "--", script, "10", exit_code=UsageError.exit_code)
    assert message in done.output
    assert "started with" not in done.output


def test_ranks_of_torchrun_do_not_rehearse(script: str, link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in run("rehearse", "--link", link, "--", script, "10", exit_code=2).output


def test_calibrating_makes_a_link_to_rehearse_with(script: str, tmp_path: Path) -> None:
    done = run("calibrate", "--name", "loopback", "--backend", "gloo", "--max-bytes", "64KiB", "--json")
    (found,) = json.loads(done.stdout)
    measured = dict(found["measured"]["seconds"]["all_reduce"])
    assert set(measured) == {1024, 4096, 16384, 65536}
    assert all(0 < seconds < 1 for seconds in measured.values())
    assert set(found["measured"]["seconds"]) >= {"all_reduce/float16", "all_gather", "reduce_scatter", "broadcast", "point_to_point"}
    assert load_link("loopback").measured is not None
    assert yaml.safe_load((tmp_path / "store" / "links" / "loopback.yaml").read_text())["name"] == "loopback"
    assert "all_reduce 1024 bytes" in done.stderr
    run("rehearse", "--gpus", "2", "--gpus-per-node", "2", "--link", "loopback", "--steps", "2", "--warmup-steps", "1", "--", script, "20")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "../up"], "--name"),
        (["--name", "x", "--max-bytes", "1TB"], "--max-bytes"),
        (["--name", "x", "--backend", "gloo", "--ranks", "1"], "--ranks 1"),
        (["--name", "x", "--backend", "nccl", "--gpus", "99"], "--gpus 99"),
    ],
)
def test_calibrating_refuses_what_cannot_be(arguments: list[str], message: str) -> None:
    assert message in run("calibrate", *arguments, exit_code=2).output
