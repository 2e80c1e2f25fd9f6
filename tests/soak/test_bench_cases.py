"""A thousand cases in one run of `gpualloc bench`: each is kept, nothing is left, neither the command nor its server of ranks grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from gpualloc.records import Measurement
from gpualloc.store import ResultsStore

NUM_CASES = 1000
SIZES = f"8..{7 + NUM_CASES}"
GROWTH_BYTES = 64 * 2**20
ASKED = ["--workload", "llm", "--model", "gpt_tiny", "--device", "cpu", "--strategy", "single", "--precision", "fp32", "--batch-size", "1"]
SHORT = ["--steps", "1", "--repeats", "1", "--rounds", "1", "--warmup-steps", "0", "--json"]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_cases_in_one_run(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "GPUALLOC_STORE": str(tmp_path / "results.sqlite"), "TMPDIR": str(tmp_path / "temporary")}
    command = [sys.executable, "-m", "gpualloc", "bench", *ASKED, "--sequence-length", SIZES, *SHORT]
    with (tmp_path / "out.json").open("w") as output, (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
    rss_bytes: list[int] = []
    watched = threading.Thread(target=watch, args=(process, rss_bytes))
    watched.start()
    assert process.wait() == 0, (tmp_path / "errors").read_text()[-2000:]
    watched.join()
    shown = json.loads((tmp_path / "out.json").read_text())
    assert len(shown["measurements"]) == NUM_CASES
    with ResultsStore(tmp_path / "results.sqlite") as store:
        kept: list[Measurement] = store.measurements(store.runs()[0].run_id)[0]
    assert len({row.case.sequence_length for row in kept if row.status == "ok"}) == NUM_CASES
    assert not list((tmp_path / "temporary").glob("gpualloc*"))
    tenth = len(rss_bytes) // 10
    assert max(rss_bytes[-tenth:]) - max(rss_bytes[tenth : 2 * tenth]) < GROWTH_BYTES, [size >> 20 for size in rss_bytes[::tenth]]


def watch(process: subprocess.Popen[bytes], rss_bytes: list[int]) -> None:
    """Of the command and its server of ranks, the child that stays."""
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            rss_bytes.append(sum(one.memory_info().rss for one in [seen, *seen.children()[:1]]))
        except psutil.Error:
            return
        time.sleep(1)
