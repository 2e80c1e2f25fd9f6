"""The PEP 517 backend and what it asks for, without building anything."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "build_backend" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


backend = load("gpualloc_build")
torch_facts = load("torch_facts")
EVERYTHING = {"torch": "2.13.0+cpu", "setuptools": "80.1.0", "cmake": "3.30.1", "ninja": "1.11.1", "path": []}


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The target environment that the backend sees; no build tools on PATH."""
    found = dict(EVERYTHING)
    monkeypatch.setattr(backend, "_target", lambda: found)
    monkeypatch.setattr(backend, "_system_version", lambda tool: ())
    return found


def test_nothing_is_asked_for_when_everything_is_there(target: dict[str, Any]) -> None:
    assert backend.get_requires_for_build_wheel() == []
    assert backend.get_requires_for_build_editable() == []


@pytest.mark.parametrize(
    ("name", "version", "asked"),
    [
        ("torch", None, "torch==2.13.0"),
        ("setuptools", "65.5.0", "setuptools>=77"),
        ("setuptools", None, "setuptools>=77"),
        ("cmake", "3.18.4", "cmake>=3.26"),
        ("cmake", None, "cmake>=3.26"),
        ("ninja", None, "ninja>=1.11"),
    ],
)
def test_only_what_is_missing_is_asked_for(target: dict[str, Any], name: str, version: str | None, asked: str) -> None:
    target[name] = version
    assert backend.get_requires_for_build_wheel() == [asked]


def test_the_fallback_torch_can_be_chosen(target: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    target["torch"] = None
    monkeypatch.setenv("GPUALLOC_BUILD_TORCH", "2.11.0")
    assert backend.get_requires_for_build_wheel() == ["torch==2.11.0"]


def test_system_tools_are_enough(target: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    target["cmake"] = target["ninja"] = None
    monkeypatch.setattr(backend, "_system_version", lambda tool: (3, 25))
    assert backend.get_requires_for_build_wheel() == []


def test_uv_isolation_is_refused_with_the_remedy(target: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    target["torch"] = None
    monkeypatch.setattr(sys, "prefix", "/home/someone/.cache/uv/builds-v0/.tmpX/")
    with pytest.raises(SystemExit, match=r"uv pip install --no-build-isolation \."):
        backend.get_requires_for_build_wheel()


def test_facts_of_the_torch_that_is_here() -> None:
    import torch

    facts = torch_facts.read()
    assert facts["version"] == torch.__version__
    assert facts["cuda"] == (torch.version.cuda or "")
    assert (Path(facts["include_dirs"][0]) / "ATen/ATen.h").exists()
    assert list(Path(facts["lib_dir"]).glob("libtorch_cpu.*"))
    assert facts["cxx_standard"] == (20 if torch.__version__ >= "2.12" else 17)


def test_facts_are_read_without_importing_torch() -> None:
    code = "import sys, torch_facts; torch_facts.read(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "build_backend", check=True)


def test_no_torch_is_said_with_the_remedy(tmp_path: Path) -> None:
    # -S: no site-packages, so no torch
    run = subprocess.run([sys.executable, "-S", str(ROOT / "build_backend/torch_facts.py")], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "no torch for" in run.stderr
    assert "pip install ." in run.stderr


def fake_nvcc(folder: Path, release: str) -> str:
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return str(nvcc)


def test_nvcc_of_another_major_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = fake_nvcc(tmp_path, "12.8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert torch_facts._find_nvcc("12.4") == (nvcc, "")
    found, reason = torch_facts._find_nvcc("11.0")
    assert found == ""
    assert "torch is built for CUDA 11.0" in reason
    assert "12.8" in reason


def test_architectures_of_the_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '9.0\\n8.0\\n9.0\\n'\n")
    smi.chmod(0o755)
    monkeypatch.delenv("GPUALLOC_CUDA_ARCHS", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert torch_facts._cuda_archs() == "80;90"
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert torch_facts._cuda_archs() == torch_facts.DEFAULT_CUDA_ARCHS
    monkeypatch.setenv("GPUALLOC_CUDA_ARCHS", "86,8.9")
    assert torch_facts._cuda_archs() == "86;89"
