"""What `gpualloc plan` makes of files that can be read but not planned as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_plan import files, run
from tests.plan.inputs import workload


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "store" / "results.sqlite"))


def test_a_workload_that_is_done_is_left_out_and_told(tmp_path: Path) -> None:
    done = run(*files(tmp_path, workload("a", samples_done=360_000), workload("b")))
    assert "a is left out: its 360,000 samples are done" in done.stderr
    assert "1 workloads planned" in done.stdout


def test_where_all_are_done_nothing_is_planned(tmp_path: Path) -> None:
    done = run(*files(tmp_path, workload("a", samples_done=400_000)), exit_code=2)
    assert "nothing is left to plan" in done.stderr


PRICE_OF_A100 = {"currency": "USD", "prices": [{"gpu_type": "A100", "per_gpu_hour": 3, "source": "x"}]}


@pytest.mark.parametrize("objective", ["cost", "throughput_per_money"])
@pytest.mark.parametrize(
    ("prices", "gpu_types", "unpriced"), [({}, None, "A100, T4"), (PRICE_OF_A100, None, "T4"), (PRICE_OF_A100, ["A100"], None)]
)
def test_what_has_no_price_does_not_count_as_free(
    objective: str, prices: dict[str, Any], gpu_types: list[str] | None, unpriced: str | None, tmp_path: Path
) -> None:
    arguments = files(tmp_path, workload(gpu_types=gpu_types))
    nodes = [{"name": gpu_type, "gpu_type": gpu_type, "num_gpus": 2, "memory_gib": 16} for gpu_type in ("A100", "T4")]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"nodes": nodes, **prices}))
    done = run(*arguments, "--objective", objective, exit_code=0 if unpriced is None else 2)
    if unpriced is not None:
        assert f"objective {objective} weighs money, and the cluster has no price for {unpriced}; give each" in done.stderr
    run(*arguments)


def test_what_can_never_run_is_not_measured(tmp_path: Path) -> None:
    rates = {("A100", 1): 100.0, ("A100", 2): 190.0}
    done = run(*files(tmp_path, workload("a", rates=rates, strategies=["single"], min_gpus=2)), exit_code=3)
    assert "none of its strategies (single) is for 2 GPUs" in done.stderr
    assert "a: min_gpus 2 -> 1" in done.stderr


def test_sharing_on_a_type_that_is_not_there_is_told(tmp_path: Path) -> None:
    arguments = files(tmp_path, workload("a"), workload("b"))
    entry = {"workloads": ["a", "b"], "gpu_type": "a100", "slowdown": {"a": 1.2, "b": 1.1}, "source": "here"}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump({"workloads": [workload("a"), workload("b")], "sharing": [entry]}))
    assert "sharing of a and b on a100 is ignored: the cluster has A100" in run(*arguments).stderr


@pytest.mark.parametrize("fields", [{}, {"deadline_h": 5}])
@pytest.mark.parametrize(("epochs", "rate"), [(1e300, 1e-30), (1e300, 100.0), (1, 1e-310)])
def test_what_takes_for_ever_is_named(fields: dict[str, Any], epochs: float, rate: float, tmp_path: Path) -> None:
    done = run(*files(tmp_path, workload("slow", epochs=epochs, rates={("A100", 1): rate}, **fields), workload("b")), exit_code=2)
    assert "slow: 3.6e+" in done.stderr
    assert "take more than 1e+12 s" in done.stderr
