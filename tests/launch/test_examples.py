"""The complete examples, planned and run to their end, together as a user would."""

import json
import re
from pathlib import Path

import pytest

from tests.launch import plans


def test_an_image_and_a_language_workload_are_trained_as_planned(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    image = ("python", str(plans.ROOT / "examples/train_image.py"), "--epochs", "3", "--image-size", "8")
    language = (str(plans.ROOT / "examples/train_language.py"), "--steps", "30", "--length", "32", "--width", "32")
    path = plans.write(
        tmp_path,
        plans.assignment("digits", command=image, per_device_batch_size=32, learning_rate_factor=2.0),
        plans.assignment(
            "letters", command=language, cores=(0, 1), hook="gpualloc_fp16", checkpoint=str(tmp_path / "letters.pt"),
            per_device_batch_size=4, grad_accum_steps=2, learning_rate_factor=4.0, start_s=1.0,
        ),
    )  # fmt: skip
    done = plans.run(tmp_path, "run", path, "--json", timeout_s=200)
    assert done.returncode == 0, done.stderr
    digits, letters = json.loads(done.stdout)
    assert (digits["progress"]["strategy"], digits["progress"]["step"]) == ("single", 3 * (1437 // 32))
    found = re.search(r"([\d.]+)% of 360 held-out digits right", (tmp_path / "jobs/1-digits/attempt1/rank0.log").read_text())
    assert found is not None
    assert float(found[1]) > 60  # a tenth by chance
    assert (letters["progress"]["hook"], letters["progress"]["grad_accum_steps"]) == ("gpualloc_fp16", 2)
    log = (tmp_path / "jobs/2-letters/attempt1/rank0.log").read_text()
    found = re.search(r"30 steps; loss ([\d.]+) -> ([\d.]+) nats a letter", log)
    assert found is not None, log
    assert float(found[2]) < float(found[1]) - 0.5
    assert (tmp_path / "letters.pt").exists()
