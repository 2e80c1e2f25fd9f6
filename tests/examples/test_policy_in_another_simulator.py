"""The example of a policy in a simulator that knows nothing of gpualloc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy_in_another_simulator.py"


def test_it_runs_and_the_default_policy_wins() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=120, check=True, env=environment)
    minutes = {line.split(":")[0]: float(line.split()[-2]) for line in done.stdout.splitlines()}
    assert minutes["gpualloc"] <= minutes["sia"] < minutes["fifo"]
