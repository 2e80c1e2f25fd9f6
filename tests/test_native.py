"""What happens when the compiled extension is missing or was built for another torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpualloc import _native
from gpualloc.errors import NativeUnavailableError

HERE = {"torch": torch.__version__, "cuda": torch.version.cuda, "cuda_archs": ["90"], "cuda_skipped": None}


@pytest.fixture
def build_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes what the build left behind; None removes it."""

    def write(**changes: Any) -> None:
        _forget()
        (tmp_path / "_build_info.json").write_text(json.dumps({**HERE, **changes}))

    monkeypatch.setattr(_native, "_INFO_FILE", tmp_path / "_build_info.json")
    _forget()
    yield write
    _forget()


def _forget() -> None:
    for function in (_native._build_info, _native._load, _native.available_or_warn):
        function.cache_clear()


def test_the_extension_of_this_environment_loads() -> None:
    build = _native.describe()
    assert build.available, build.reason
    assert build.built_for_torch == torch.__version__
    assert build.cpu_isa in {"avx512", "avx2", "scalar"}
    assert _native.module().torch_version == torch.__version__


def test_missing(build_info: Any) -> None:
    build = _native.describe()
    assert not build.available
    assert "pip install ." in str(build.reason)
    assert not _native.describe(load=False).available
    with pytest.raises(NativeUnavailableError, match="there is no compiled extension in"):
        _native.module()


def test_built_for_another_torch(build_info: Any) -> None:
    build_info(torch="2.0.0+cpu")
    build = _native.describe()
    assert not build.available
    assert f"built for torch 2.0.0+cpu, found torch {torch.__version__}" in str(build.reason)
    assert "pip install --force-reinstall" in str(build.reason)
    assert _native.describe(load=False).available  # only what the build says of itself


def test_built_for_another_cuda(build_info: Any) -> None:
    build_info(cuda="11.8")
    found = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    assert found in str(_native.describe().reason)


def test_the_local_version_label_does_not_matter(build_info: Any) -> None:
    build_info(torch=torch.__version__.split("+")[0] + "+other")
    assert _native.describe().available


def test_one_warning(build_info: Any) -> None:
    with pytest.warns(RuntimeWarning, match="slower Python hooks") as caught:
        assert [_native.available_or_warn(), _native.available_or_warn()] == [False, False]
    assert len(caught) == 1


def test_a_damaged_record_counts_as_missing(build_info: Any, tmp_path: Path) -> None:
    (tmp_path / "_build_info.json").write_text("{")
    assert not _native.describe().available
