import csv
import io
from dataclasses import asdict

import pytest

from gpualloc.records import Measurement
from gpualloc.store import to_csv
from tests.store.sample_measurements import gpu_run, image_case, measured


def parse(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_one_line_per_case_with_every_figure() -> None:
    lines = parse(to_csv(7, gpu_run()))
    assert len(lines) == len(gpu_run())
    for line, measurement in zip(lines, gpu_run(), strict=True):
        assert (line["run_id"], line["case_key"], line["model"]) == ("7", measurement.case.key(), measurement.case.model)
        assert line["step_time_s"] == ("" if measurement.step_time_s is None else repr(measurement.step_time_s))
        assert line["reason"] == (measurement.reason or "")
        assert line["environment_sm_clock_mhz"] == "1980"
    assert lines[0]["repeat_step_times_s"].split(";") == [repr(value) for value in gpu_run()[0].repeat_step_times_s]
    assert lines[8]["loss_end"] == "nan"


def test_every_field_of_the_records_has_a_column() -> None:
    measurement = measured(image_case(), 0.1)
    header = to_csv(1, [measurement]).split("\r\n")[0].split(",")
    assert len(header) == len(set(header))
    data = asdict(measurement)
    environment, case = data.pop("environment"), data.pop("case")
    assert set(header) == {"run_id", "case_key", *case, *data, *(f"environment_{name}" for name in environment)}


def test_lines_end_and_quote_as_rfc_4180_says() -> None:
    text = to_csv(1, [Measurement(case=image_case(), status="failed", reason='rank 0 said "no", then\nstopped')])
    assert text.count("\r\n") == 2
    assert '"rank 0 said ""no"", then\nstopped"' in text


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_does_not_run_a_name_as_a_formula(start: str) -> None:
    name = start + "HYPERLINK(1)"
    (line,) = parse(to_csv(1, [measured(image_case(model=name), 0.1)]))
    assert line["model"] == "'" + name


def test_negative_numbers_stay_numbers() -> None:
    (line,) = parse(to_csv(1, [measured(image_case(), 0.1, loss_end=-1.5)]))
    assert line["loss_end"] == "-1.5"
