"""Study files: what they give, and how a fault is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpualloc.bench.grid import expand_grids
from gpualloc.bench.options import BenchOptions
from gpualloc.bench.study import PRESETS, load_preset, load_study, narrowed
from gpualloc.errors import UsageError

YAML = """
precision: [fp32, bf16]
image-size: 100..300:100
max_minutes: 5
pin_memory: on, off
grids:
  - precision: fp64
  - {}
"""
TOML = """
precision = ["fp32", "bf16"]
image-size = "100..300:100"
max_minutes = 5
pin_memory = [true, false]
[[grids]]
precision = "fp64"
[[grids]]
"""


def write(folder: Path, text: str, suffix: str = "yaml") -> Path:
    path = folder / f"study.{suffix}"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("text", "suffix"), [(YAML, "yaml"), (YAML, "yml"), (TOML, "toml")])
def test_yaml_and_toml_say_the_same(tmp_path: Path, text: str, suffix: str) -> None:
    asked = load_study(write(tmp_path, text, suffix))
    shared = {"image_sizes_px": (100, 200, 300), "pin_memory": (True, False)}
    assert asked.grids == ({**shared, "precisions": ("fp64",)}, {**shared, "precisions": ("fp32", "bf16")})
    assert asked.settings == {"max_minutes": 5}


def test_an_empty_file_is_the_default_grid(tmp_path: Path) -> None:
    assert load_study(write(tmp_path, "# nothing yet\n")).grids == ({},)


@pytest.mark.parametrize(
    ("text", "suffix", "line", "message"),
    [
        ("steps: 2\nprecision: fp33\n", "yaml", 2, "precision 'fp33' is unknown; choose one of fp64, fp32"),
        ("\n\nimage-sise: 3\n", "yaml", 3, "'image_sise' is unknown; choose one of workload, model, image_size,"),
        ("image-sise: 3\n", "yaml", 1, "did you mean image_size?"),
        ("grids:\n  - steps: 1\n  - hook: [none, x]\n", "yaml", 3, "hook 'x' is unknown; choose one of none"),
        ("grids:\n  - rounds: 1\n", "yaml", 2, "'rounds' is unknown; choose one of workload"),
        ("steps: 0\nfoo: 1\n", "yaml", 1, "steps 0 is out of range; choose 1 to 1,000,000 (and 1 more)"),
        ("rounds: two\n", "yaml", 1, "rounds is 'two'; give one value"),
        ("ci_percent: 0\n", "yaml", 1, "ci-percent 0 is out of range; choose 0.01 to 100"),
        ("model:\n  name: gpt2\n", "yaml", 1, "model is {'name': 'gpt2'}; give one value or a list of values"),
        ("grids: []\n", "yaml", 1, "grids is a list of at least one grid"),
        ("grids: [3]\n", "yaml", 1, "grids is a list of at least one grid"),
        ("steps: 1\nsteps: 2\n", "yaml", 2, "'steps' stands in line 1 already"),
        ("a: [1\nb: 2\n", "yaml", 2, "not YAML: expected ',' or ']'"),
        ("- 3\n", "yaml", 1, "not of one list"),
        ("data: !!python/name:os.system x\n", "yaml", 1, "not YAML: could not determine a constructor"),
        (
            "steps = 1\n[[grids]]\nmodel = 'gpt2'\n[[grids]]\nmodel = 'gpt9'\n",
            "toml",
            5,
            "model 'gpt9' is unknown; choose one of mobilenet_v2",
        ),
        ("steps = 1\na = = 3\n", "toml", 2, "not TOML"),
    ],
)
def test_a_fault_is_told_with_its_line_and_what_is_allowed(tmp_path: Path, text: str, suffix: str, line: int, message: str) -> None:
    path = write(tmp_path, text, suffix)
    with pytest.raises(UsageError) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing.yaml cannot be read"):
        load_study(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match=r"neither .yaml, .yml nor .toml"):
        load_study(write(tmp_path, "", "json"))
    (tmp_path / "study.yaml").write_bytes(b"model: \xff")
    with pytest.raises(UsageError, match="cannot be read"):
        load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_give_cases(name: str) -> None:
    cells = expand_grids([BenchOptions(device="cpu", **grid) for grid in load_preset(name).grids], num_gpus=0)
    assert any(cell.skip_reason is None for cell in cells)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UsageError, match="choose one of quick, study, llm; did you mean study"):
        load_preset("studie")


def test_a_single_process_asked_for_leaves_out_what_the_file_says_of_several() -> None:
    grid = {"strategies": ("single", "ddp"), "num_gpus": ("1..all",), "hooks": ("none",), "precisions": ("fp16",)}
    assert narrowed(grid, {"strategies": ("single",)}) == {"strategies": ("single",), "precisions": ("fp16",)}
    assert narrowed(grid, {"strategies": ("single",), "num_gpus": (2,)})["num_gpus"] == (2,)  # refused later, as it was asked for
    assert narrowed(grid, {"strategies": ("ddp",)})["num_gpus"] == ("1..all",)
    [expanded] = load_preset("study").grids
    BenchOptions(device="cpu", **narrowed(expanded, {"strategies": ("single",)}))
