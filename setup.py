"""Builds gpualloc._C through CMake and Ninja against the torch at hand, and pins that torch in the metadata."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "build_backend"))
import torch_facts  # noqa: E402

FACTS = torch_facts.read()
INFO_FILE = "_build_info.json"  # read by gpualloc._native


def tool(name: str) -> str:
    """The binary of a build tool: the wheel's own (pip's wrapper script breaks under isolation), else the one on PATH."""
    try:
        if name == "cmake":
            import cmake

            return str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which(name)
        if found is None:
            raise SystemExit(f"gpualloc build: no {name}; run: pip install {name}") from None
        return found


class CMakeBuild(build_ext):
    """One CMake build tree per torch and Python, kept between builds so that the second one takes seconds."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        tree = ROOT / "build" / f"torch-{FACTS['version']}-{sysconfig.get_config_var('SOABI')}"
        if FACTS["cuda_skipped"]:
            print(f"gpualloc build: CPU half only: {FACTS['cuda_skipped']}", file=sys.stderr)
        tree.mkdir(parents=True, exist_ok=True)
        facts_file = tree / "torch_facts.json"  # CMake could not see torch from inside pip's isolation
        facts_file.write_text(json.dumps(FACTS))
        configure = [tool("cmake"), "-S", str(ROOT), "-B", str(tree), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
        builds_tests = os.environ.get("GPUALLOC_BUILD_TESTS") == "1"  # for ctest in the tree, from the same objects
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DGPUALLOC_TORCH_FACTS={facts_file}"]
        configure += [f"-DGPUALLOC_BUILD_TESTS={'ON' if builds_tests else 'OFF'}"]
        subprocess.run(configure, check=True)
        subprocess.run([tool("cmake"), "--build", str(tree), "--target", "all" if builds_tests else "_C"], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tree / "_C.so", target)
        info = {
            "torch": FACTS["version"],
            "cuda": FACTS["cuda"] if FACTS["nvcc"] else None,
            "cuda_archs": FACTS["cuda_archs"].split(";") if FACTS["nvcc"] else [],
            "cuda_skipped": FACTS["cuda_skipped"] or None,
        }
        (target.parent / INFO_FILE).write_text(json.dumps(info, indent=1) + "\n")

    def copy_extensions_to_source(self) -> None:
        """Editable installs: the module and what it was built for belong beside the Python sources."""
        super().copy_extensions_to_source()
        shutil.copy2(Path(self.build_lib) / "gpualloc" / INFO_FILE, ROOT / "gpualloc" / INFO_FILE)


shutil.rmtree(ROOT / "build" / "setuptools", ignore_errors=True)  # deleted modules must not live on in a wheel
setup(
    ext_modules=[Extension("gpualloc._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    options={"build": {"build_base": "build/setuptools"}},
    install_requires=[
        f"torch=={FACTS['version'].split('+')[0]}",
        "numpy>=1.26",
        "scipy>=1.11",
        "typer>=0.19",
        "rich>=13",
        "psutil>=5.9",
        "nvidia-ml-py>=12",
        "pydantic>=2.7",
        "pyyaml>=6",
        "jinja2>=3.1",
        "tomli>=2; python_version < '3.11'",
    ],
)
