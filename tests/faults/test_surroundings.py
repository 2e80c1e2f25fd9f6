"""Commands where everything around them is odd: a home nobody can write to, a host without an address, modules that are in the way."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import plans

SCRIPT = plans.ROOT / "tests/faults/scripts/odd.py"
SHADOWS = ("random", "yaml", "json", "logging", "types", "queue", "numpy", "typer", "gpualloc")


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """What pip installs as the command: a script in a folder of its own."""
    path = tmp_path / "bin" / "gpualloc"
    path.parent.mkdir()
    path.write_text("from gpualloc.cli.app import main\nmain()\n")
    return path


@pytest.fixture
def taken_port() -> Iterator[None]:
    """29500 is torch's default."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("", 29500))
            taken.listen()
        except OSError:
            pass  # somebody else has it: as good
        yield


@pytest.fixture
def odd(tmp_path: Path, taken_port: None) -> dict[str, str]:
    """The environment."""
    broken = tmp_path / "broken"
    for name in ("torchvision", "transformers"):
        (broken / name).mkdir(parents=True)
        (broken / name / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    return {
        **plans.environment(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(plans.ROOT), str(broken)]),
        "HOME": "/proc/nobody",
        "COLUMNS": "20",
        "LC_ALL": "C",
        "RANK": "3",  # half of torchrun's
        "WORLD_SIZE": "8",
        "MASTER_PORT": "29500",
    }


def nowhere(*words: str) -> list[str]:
    """The command on a host whose name nobody resolves, where that can be had."""
    rename = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host && exec "$@"', "sh"]
    may = os.geteuid() == 0 and subprocess.run([*rename, "true"], capture_output=True).returncode == 0
    return [*rename, *words] if may else [*words]


def call(entry: Path, environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = nowhere(sys.executable, str(entry), *arguments)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_a_benchmark_of_two_ranks(entry: Path, odd: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "shadows"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working directory was taken')\n")
    small = "--device cpu --workload image --image-size 32 --batch-size 2 --strategy ddp --hook none"
    timing = "--steps 1 --repeats 1 --warmup-steps 1 --rounds 1 --json"
    done = call(entry, odd, folder, "bench", *small.split(), *timing.split())
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["measurements"]
    assert [(row["case"]["world_size"], row["status"]) for row in rows] == [(1, "ok"), (2, "ok")][-len(rows) :]


def test_a_job_that_prints_garbage_and_trains_to_nan(entry: Path, odd: dict[str, str], tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.assignment("odd", command=("python", str(SCRIPT)), cores=(0, 1)))
    done = call(entry, odd, tmp_path, "run", str(path))
    assert done.returncode == 0, done.stderr
    status = json.loads(call(entry, odd, tmp_path, "status", "--json").stdout, parse_constant=pytest.fail)
    assert (status[0]["progress"]["step"], status[0]["progress"]["loss"]) == (4, None)  # JSON has no NaN
    logs = call(entry, odd, tmp_path, "logs", "odd")
    assert (logs.returncode, logs.stderr) == (0, "")
    assert "\\xff\\xfe not UTF-8" in logs.stdout
    assert "last line\n" in logs.stdout


def test_a_home_nobody_can_write_to_is_told(entry: Path, odd: dict[str, str], tmp_path: Path) -> None:
    del odd["GPUALLOC_STORE"]
    odd.pop("XDG_DATA_HOME", None)
    told = call(entry, odd, tmp_path, "results")
    assert (told.returncode, told.stderr.startswith("no results yet at /proc/nobody/")) == (0, True)
    refused = call(entry, odd, tmp_path, "bench", "--device", "cpu")
    assert refused.returncode == 1
    assert "cannot be written: No such file or directory; use another file with --store" in refused.stderr
    assert "Traceback" not in refused.stderr
