"""Figures: what is drawn, and that files of every kind come out."""

from pathlib import Path

import pytest

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.findings import find
from gpualloc.findings.panels import panels
from gpualloc.plots import check_plot_path, draw
from tests.findings.studied_runs import batches_run, details_run, study_run
from tests.store.sample_measurements import image_case, llm_case, measured


def test_panels_show_the_figures() -> None:
    ((precision, scaling), (of_gpt,)) = panels(find([*study_run(), *batches_run()]))
    assert [line.label for line in precision.lines] == ["fp32 over fp64", "fp16 over fp64", "fp16 over fp32"]
    assert precision.lines[1].x == (100, 200, 300, 400, 500)
    assert precision.lines[1].y == pytest.approx((2.10, 2.24, 2.35, 2.45, 2.52), rel=0.01)
    assert (scaling.reference_y, [line.label for line in scaling.lines]) == (0.8, ["2 GPUs", "4 GPUs"])
    assert (of_gpt.x_label, of_gpt.lines[0].x) == ("batch size, samples per rank", (4, 8, 16))


def test_a_language_model_of_one_size_has_a_point() -> None:
    rows = [measured(llm_case(strategy="single", world_size=1), 0.1), measured(llm_case(), 0.11)]
    ((scaling,),) = panels(find(rows))
    assert (scaling.x_label, scaling.lines[0].x) == ("sequence length, tokens", (1024,))


def test_a_detail_is_drawn_over_the_ranks_from_the_single_process_on() -> None:
    rows = details_run()
    for world_size in (2, 4):  # a second hook: a line of its own from the same first point
        rows += [measured(image_case(world_size=world_size, hook="torch_fp16"), 0.05)]
        rows += [measured(image_case(world_size=world_size, hook="torch_fp16", pin_memory=False), 0.06)]
    ((_, details),) = panels(find(rows))
    lines = {line.label: line for line in details.lines}
    assert lines["pin_memory off over on, ddp/none"].x == (1, 2, 4)
    assert lines["pin_memory off over on, ddp/torch_fp16"].x == (1, 2, 4)
    assert lines["pin_memory off over on, ddp/none"].y[0] == lines["pin_memory off over on, ddp/torch_fp16"].y[0]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_files(tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"figure{suffix}"
    draw(panels(find([*study_run(), *batches_run()])), path)
    assert path.read_bytes().startswith(start)


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match=r"does not end in \.png, \.svg, \.pdf"):
        check_plot_path(tmp_path / "figure.jpeg")
    with pytest.raises(GpuallocError, match="choose another file"):
        draw(panels(find(study_run())), tmp_path / "missing" / "figure.png")
