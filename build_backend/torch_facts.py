"""What the build must know of the torch at hand and of the CUDA compiler, read without importing torch.

`python build_backend/torch_facts.py` prints it as JSON; setup.py and CMakeLists.txt both ask here, so they agree.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

DEFAULT_CUDA_ARCHS = "80;90"  # A100 and H100/H200; CMake adds PTX of each, so newer GPUs compile it at first use


def read() -> dict[str, Any]:
    """Facts of the torch this interpreter would import.

    Returns:
        version, include_dirs, lib_dir, cxx_standard, cuda ("13.0" or ""), nvcc (path or ""), cuda_archs ("80;90" or ""),
        cuda_skipped (why the CUDA half is left out of a CUDA torch, or "").

    Raises:
        SystemExit: no torch, with what to do.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit(f"gpualloc build: no torch for {sys.executable}; install torch first, or run 'pip install .' which fetches one")
    root = Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    cuda = version.get("cuda") or ""
    nvcc, skipped = _find_nvcc(cuda) if cuda else ("", "")
    release = tuple(int(part) for part in re.findall(r"\d+", version["__version__"])[:2])
    return {
        "version": version["__version__"],
        "include_dirs": [str(root / "include"), str(root / "include/torch/csrc/api/include")],
        "lib_dir": str(root / "lib"),
        "cxx_standard": 20 if release >= (2, 12) else 17,  # torch's headers ask for it
        "cuda": cuda,
        "nvcc": nvcc,
        "cuda_archs": _cuda_archs() if nvcc else "",
        "cuda_skipped": skipped,
    }


def _find_nvcc(cuda: str) -> tuple[str, str]:
    """(path, "") of a compiler of torch's CUDA major version, or ("", why not)."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [f"{home}/bin/nvcc" for home in homes] + [shutil.which("nvcc") or "", "/usr/local/cuda/bin/nvcc"]
    seen = []
    for nvcc in candidates:
        if not nvcc or not os.access(nvcc, os.X_OK):
            continue
        output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"release (\d+)\.(\d+)", output)
        if found and found[1] == cuda.split(".")[0]:
            return nvcc, ""
        seen.append(f"{nvcc} is {found[1]}.{found[2]}" if found else f"{nvcc} is of unknown version")
    if not seen:
        return "", f"torch is built for CUDA {cuda} but no nvcc was found (set CUDA_HOME)"
    return "", f"torch is built for CUDA {cuda} but {', '.join(seen)} (set CUDA_HOME to a CUDA {cuda.split('.')[0]} toolkit)"


def _cuda_archs() -> str:
    """Compute capabilities of this machine's GPUs ("90"), $GPUALLOC_CUDA_ARCHS, or the default."""
    chosen = os.environ.get("GPUALLOC_CUDA_ARCHS")
    if chosen:
        return chosen.replace(",", ";").replace(".", "")
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        output = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return DEFAULT_CUDA_ARCHS
    archs = sorted({line.strip().replace(".", "") for line in output.splitlines() if re.fullmatch(r"\s*\d+\.\d+\s*", line)})
    return ";".join(archs) or DEFAULT_CUDA_ARCHS


if __name__ == "__main__":
    print(json.dumps(read()))
