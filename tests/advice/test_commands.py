"""The commands that advice prints can be run."""

import shlex

import pytest

from gpualloc.advice.commands import bench_command
from gpualloc.records import JOB_DATA
from tests.store.sample_measurements import image_case


@pytest.mark.parametrize(("data", "words"), [("synthetic", []), (JOB_DATA, []), ("digits", ["--data", "digits"])])
def test_data_that_only_a_job_reads_is_not_asked_of_the_benchmark(data: str, words: list[str]) -> None:
    command = shlex.split(bench_command(image_case(data=data)))
    assert command[:2] == ["gpualloc", "bench"]
    place = command.index("--data") if "--data" in command else len(command)
    assert command[place : place + 2] == words
