"""`gpualloc results compare` with one run: the findings in words, tables, JSON and a figure."""

from pathlib import Path

import pytest

from gpualloc.store import ResultsStore
from tests.cli.test_results import json_of, results
from tests.findings.studied_runs import batches_run, details_run, study_run
from tests.store.sample_measurements import GPU_ENVIRONMENT


@pytest.fixture
def studied(store_path: Path) -> Path:
    """Run 1 with the study's figures and a language model, run 2 with the details."""
    with ResultsStore(store_path) as store:
        for rows in ([*study_run(), *batches_run()], details_run()):
            run_id = store.begin_run(command="gpualloc bench", options={}, environment=GPU_ENVIRONMENT)
            for row in rows:
                store.add(run_id, row)
            store.finish_run(run_id, "complete")
    return store_path


@pytest.mark.usefixtures("studied")
def test_the_newest_run_is_read() -> None:
    text = results("compare").stdout
    assert text == results("compare", "2").stdout == results("compare", "latest").stdout
    assert "pin_memory off instead of on: on 1 GPU, 2.0% slower" in text
    assert "measure two: --precision fp64,fp32,fp16" in text


@pytest.mark.usefixtures("studied")
@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_studys_questions_are_answered_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = results("compare", "1").stdout
    words = " ".join(text.split())
    assert "four GPUs pay from about 300 px (between 200 and 300 px)" in words
    assert "fp16 over fp64: 110 to 152% faster (all 5 comparisons)" in words
    assert "+110% [+109%,\u00a0+111%]" in text
    assert "62% [62%,\u00a062%]" in text
    assert "weak scaling: every rank has the same batch size" in words
    assert max(map(len, text.splitlines()[1:])) <= width
    assert max(line.count("%]") for line in text.splitlines()) == (5 if width > 80 else 3)  # one line per figure where a table does not fit


@pytest.mark.usefixtures("studied")
def test_json_holds_words_and_figures() -> None:
    data = json_of("compare", "1", "--json", "--min-efficiency", "0.5")
    assert (data["run_id"], data["min_efficiency"]) == (1, 0.5)
    assert "mobilenet_v2, fp32, 64 per rank: two GPUs pay from 100 px on, the smallest measured" in data["answers"]["scaling"]
    gain = next(gain for gain in data["precision_gains"] if gain["changed"] == "fp16" and gain["case"]["image_size_px"] == 500)
    assert gain["speedup"]["low"] < 2.52 < gain["speedup"]["high"]


@pytest.mark.usefixtures("studied")
def test_a_figure_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "findings.svg"
    assert f"findings of run 1 drawn to {figure}" in results("compare", "1", "--plot", str(figure)).stderr
    assert "Weak scaling" in figure.read_text()


@pytest.mark.usefixtures("studied")
def test_what_cannot_be_meant_is_refused() -> None:
    assert "choose a fraction above 0, up to 1" in results("compare", "--min-efficiency", "80", exit_code=2).stderr
    assert "name one run to read, or two to compare" in results("compare", "1", "2", "1", exit_code=2).stderr
    assert "are for one run and two are given" in results("compare", "1", "2", "--plot", "f.png", exit_code=2).stderr
    assert "name a file that does" in results("compare", "--plot", "f.jpeg", exit_code=2).stderr


@pytest.mark.usefixtures("filled")
def test_problems_are_counted_and_nothing_is_made_up() -> None:
    text = results("compare", "1").stdout
    assert "left out everywhere: 1 failed, 1 oom, 1 skipped" in text
    assert "left out of the best settings for inf or NaN in the loss: 1" in text
    assert "no threshold: several sizes or batch sizes are needed" in text
