from __future__ import annotations

import json

import pytest

from gpualloc.watching import DeviceSample
from gpualloc.watching.samples import from_json
from tests.watching.made_samples import GPU, HOST, process, series


@pytest.mark.parametrize("sample", [GPU, HOST, *series((5, 12.5), processes=(process(), process(1, None, command=None)))])
def test_a_sample_comes_back_from_json(sample: DeviceSample) -> None:
    data = json.loads(json.dumps(sample.to_json()))
    assert from_json(data) == sample


def test_time_is_iso_8601_in_utc() -> None:
    assert GPU.to_json()["time_utc"] == "2026-11-26T00:00:00.000+00:00"
