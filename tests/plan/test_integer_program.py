"""What the solver prints does not reach those who read gpualloc's output."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRINTS = """
import ctypes, sys
from scipy import optimize
from gpualloc.plan.integer_program import milp

real = optimize.milp

def talkative(*arguments, **options):
    ctypes.CDLL(None).printf(b"a line of the solver\\n")
    return real(*arguments, **options)

optimize.milp = talkative
print("before", milp([-1.0], bounds=optimize.Bounds(0, 2), integrality=[1]).x.tolist())
ctypes.CDLL(None).printf(b"a line of another library\\n")
print("after", milp([1.0], bounds=optimize.Bounds(0, 2), integrality=[1]).x.tolist())
"""


@pytest.mark.parametrize("before", ["", "import os; os.close(1); sys = __import__('sys'); sys.stdout = sys.stderr"])
def test_nothing_of_the_solver_is_printed(before: str) -> None:
    done = subprocess.run([sys.executable, "-c", before + PRINTS], capture_output=True, text=True, timeout=60, check=True)
    lines = (done.stderr if before else done.stdout).splitlines()
    assert [line for line in lines if line != "a line of another library"] == ["before [2.0]", "after [0.0]"]
    assert before or "a line of another library" in lines
