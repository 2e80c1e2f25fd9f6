"""docs/faults.md says nothing that its tests do not."""

import re
from pathlib import Path

import pytest

from tests.faults.named_tests import markers_of

PAGE = Path(__file__).parents[2] / "docs/faults.md"
ON_GPU = {"gpu", "nccl"}


def rows() -> list[list[str]]:
    """Cells of every row of every table, headers left out."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[-1] not in ("ran", "") and not set("".join(row)) <= set("-|")]


def named_in(row: list[str]) -> list[str]:
    return re.findall(r"`([\w/]+\.py::\w+)`", row[-2])


def test_every_row_is_there() -> None:
    numbers = [int(row[0]) for row in rows() if row[0].isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 40
    assert f"{len(numbers)} faults" in (PAGE.parents[1] / "README.md").read_text()
    assert len(rows()) - len(numbers) == 14  # torch's list for hooks


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_a_row_names_tests_that_exist_and_where_they_ran(row: list[str]) -> None:
    named = named_in(row)
    assert named
    assert row[-2].count("`") == 2 * len(named), "a name that is no test's"
    on_gpu = [bool(markers_of(name) & ON_GPU) for name in named]
    assert row[-1].startswith("CPU") == (not all(on_gpu)), "CPU needs a test without a GPU"
    assert ("GPU:" in row[-1]) == any(on_gpu), "tests that need a GPU are told apart"


@pytest.mark.parametrize("name", ["faults/test_table.py::test_nothing", "faults/test_nothing.py::test_a", "faults/test_table.py::rows"])
def test_a_name_that_is_no_test_is_found(name: str) -> None:
    with pytest.raises(KeyError):
        markers_of(name)


def test_markers_of_the_file_and_of_the_test_count() -> None:
    assert markers_of("comm/test_torch_list_nccl.py::test_wire") >= ON_GPU
    assert markers_of("launch/test_slurm.py::test_a_rank_that_raises_is_named_and_too_few_gpus_are_refused") == {"slurm"}
