"""Every shell block of README.md and docs/: each command is one that gpualloc understands, and each that a CPU can run is run.

pytest tests/docs                  the cheap part: parsed, its files looked for, and run where it takes less than a second
pytest -m docs tests/docs          all others, page by page in the order of the page, in a folder with stand-ins for a reader's files
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperCommand
from typer.testing import CliRunner

from gpualloc.bench.grid import expand_grids
from gpualloc.bench.notation import NOTATIONS, parse_options
from gpualloc.bench.options import BenchOptions
from gpualloc.bench.study import load_preset, load_study
from gpualloc.cli.app import app
from tests.docs.prepared_folder import prepare, put_files_for
from tests.docs.shell_blocks import PAGES, ROOT, Command, commands_in, commands_of, shell_blocks

INSTALLS = "installs from an index; .ci/run does it in a clean environment"
GPUS = "needs GPUs"
LAB = "needs root: tests/benchmarks/test_network_lab.py builds one"
LLAMA = "needs a GPU for 1 B parameters and more"
NOT_RUN = {  # command -> what it needs, and which test does it where that is there
    "pip install .": INSTALLS,
    "pip install '.[data]'": INSTALLS,
    "pip install -e '.[test]'": INSTALLS,
    "pip install '.[integrations]'": INSTALLS,
    "pip install 'gpualloc[ray]'": INSTALLS,
    'pytest -n 2 --dist loadfile -m "not clock" && pytest -m clock': "is the suite that this test is in; .ci/run",
    "python benchmarks/gate.py new.json": "needs a baseline of this very machine: tests/benchmarks/test_gate.py",
    "cmake -B build -G Ninja && cmake --build build && ctest --test-dir build": "builds in the source tree; .ci/run does it beside it",
    "python benchmarks/network_lab.py up --hosts 2 --rate 1gbit": LAB,
    "python benchmarks/network_lab.py check": LAB,
    "python benchmarks/network_lab.py exec 0 -- python rank.py 0": LAB,
    "python benchmarks/network_lab.py exec 1 -- python rank.py 1": LAB,
    "python benchmarks/network_lab.py down": LAB,
    "sudo python benchmarks/compare_hooks.py --lab 2,4 --rate 200mbit,1gbit,10gbit --output hooks.json": LAB,
    "python benchmarks/compare_hooks.py --nccl-ranks 2,4": GPUS,
    "python benchmarks/compare_hooks.py --gpus 2": GPUS,
    "gpualloc study --image-size 100..500:20 --precision fp32,fp16 --gpus 4 --max-minutes 20": GPUS,
    "gpualloc study --image-size 100..500:50 --precision fp16 --gpus 4": GPUS,
    "gpualloc profile --model gpt2 --precision bf16 --strategy ddp --gpus 2": GPUS,
    "gpualloc bench --quality --ranks-per-gpu 2 --output quality.json --plot curves.png": GPUS,
    "gpualloc bench --quality --ranks-per-gpu 2 --output quality.json": GPUS,
    "gpualloc bench --precision fp64,fp32,fp16 --image-size 100,200,300,400,500 --gpus 2,4": GPUS,
    "gpualloc bench --preset study --gpus 2 --precision fp32,fp16 --image-size 100,300,500 --pin-memory on "
    "--rounds 1 --steps 10 --repeats 3 --warmup-steps 5": GPUS,
    "gpualloc bench --model mobilenet_v2 --precision bf16 --image-size 100,200,300,500 --strategy single,ddp --hook none,gpualloc_auto "
    "--ranks-per-gpu 2 --rounds 1 --steps 10 --repeats 4": GPUS,
    "gpualloc bench --model llama_1b --sequence-length 1024 --precision bf16 --strategy single --activation-checkpointing off,on "
    "--tuning full,lora --rounds 1 --steps 5 --repeats 3 --warmup-steps 3": LLAMA,
    "gpualloc bench --model llama_8b --sequence-length 1024 --precision bf16 --strategy single --activation-checkpointing on "
    "--tuning lora --rounds 1 --steps 3 --repeats 3 --warmup-steps 2": LLAMA,
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint host:29500 --no-python gpualloc calibrate --name ours": "needs two machines",
    "gpualloc run plan.json --engine slurm -o partition=gpu -o time=12:00:00 -o account=vision": "needs Slurm: tests/launch/test_slurm.py",
    "gpualloc run plan.json --engine slurm -o partition=gpu -o time=2:00:00": "needs Slurm: tests/launch/test_slurm.py",
    "gpualloc run plan.json --engine ray -o address=10.0.0.1:6379": "needs a Ray cluster at that address: tests/launch/test_ray.py",
    "gpualloc simulate --policy all --seeds 10 --rates measured_steps": "needs measured tables of others, which are not in the repository",
}
ELSEWHERE = {  # page -> the test that runs all of it
    "docs/first_hour.md": "tests/examples/test_first_hour.py",
}
UNTIL_STOPPED_S = {  # command -> seconds after which it gets Ctrl-C
    "gpualloc watch": 6,
    "gpualloc watch --pid 4711 --price-per-hour '2.50 EUR'": 6,
    "gpualloc watch --pid 4711 --json > samples.jsonl": 6,
    "gpualloc watch --interval 1s --duration 10m --json > samples.jsonl": 6,
    "gpualloc watch --interval 1s --duration 10m --price-per-hour '2.50 EUR'": 6,
    "gpualloc report --serve": 6,
    "gpualloc plan workloads.yaml --watch --json --out plan.json": 20,
    "gpualloc logs vision --rank 1 --follow": 4,
}
BESIDE = ("gpualloc run plan.json",)  # goes on while the commands below it run
EVIDENCE = "not enough evidence"
ENDS_WITH_1 = {  # command -> what it then says
    "gpualloc advise --model llama_1b --precision bf16 --batch-size 4 --gpu-memory-gib 80": EVIDENCE,  # as the page says
    "gpualloc advise --image-size 500 --dataset-size 1281167 --epochs 90": EVIDENCE,  # where others disturbed every repeat before it
}
QUICK = ("--help", "--version", "bench --help", "config", "results", "forecast", "status", "report")  # below a second once torch is loaded
PROGRAMS = ("cd", "cmake", "gpualloc", "pip", "pytest", "python", "sudo", "torchrun")
COMMANDS = [command for page in PAGES for command in commands_of(page)]


def gpualloc_lines(command: Command) -> list[list[str]]:
    """Arguments of each gpualloc that a command line starts, also through torchrun."""
    parts = [shlex.split(re.sub(r"\s>\s.*", "", part)) for part in command.text.split("&&")]
    return [words[words.index("gpualloc") + 1 :] for words in parts if "gpualloc" in words]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Contexts of the commands that would have run."""
    contexts: list[Any] = []
    monkeypatch.setattr(TyperCommand.__mro__[1], "invoke", lambda command, context: contexts.append(context))
    return contexts


def test_blocks_are_found() -> None:
    text = (
        "Text\n\n    gpualloc bench \\\n        --json   # told\n\n```\ngpualloc run '#1'\n```\n\n```text\nprinted\n```\n- item\n    more\n"
    )
    assert [(line, commands_in(block)) for line, block in shell_blocks(text)] == [
        (3, ["gpualloc bench --json"]),
        (6, ["gpualloc run '#1'"]),
    ]
    assert len(COMMANDS) > 150


@pytest.mark.parametrize("page", PAGES)
def test_what_is_no_command_says_what_it_is(page: str) -> None:
    """So that no command hides among what is printed, and nothing printed is taken for one."""
    assert [each.text for each in commands_of(page) if each.words[0] not in PROGRAMS] == []
    labelled = re.findall(r"^```\w+\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert [line for block in labelled for line in block.splitlines() if re.match(r"(\$ )?(gpualloc|pip|torchrun) [a-z-]", line)] == []


@pytest.mark.parametrize("page", PAGES)
def test_gpualloc_understands_its_commands(page: str, parsed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")  # where the first hour's models are
    for command in commands_of(page):
        for arguments in gpualloc_lines(command):
            if "completion" in arguments[0]:
                continue  # writes to the files of the shell it is called from, which here is none
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (command, done.stderr)
    for context in parsed:
        if context.command.name in ("bench", "study"):
            params = context.params
            asked = (
                load_study(ROOT / params["study"])
                if params.get("study")
                else load_preset(params["preset"])
                if params.get("preset")
                else None
            )
            given = parse_options({name: value for name, value in params.items() if name in NOTATIONS})
            grids = [BenchOptions(**{"device": "cuda", **grid, **given}) for grid in (asked.grids if asked else ({},))]
            assert expand_grids(grids, num_gpus=4)


@pytest.mark.parametrize("command", [each for each in COMMANDS if re.search(r"\b(examples|benchmarks)/", each.text)], ids=str)
def test_files_of_the_repository_are_there(command: Command) -> None:
    files = [word for word in command.words if re.match(r"(examples|benchmarks)/", word)]
    assert [file for file in files if not (ROOT / file).exists()] == []
    scripts = [file for file in files if file.endswith(".py") and "python" in command.words]
    for script in scripts:
        options = [word for word in command.words if word.startswith("--") and word != "--"]
        assert [option for option in options if f'"{option}"' not in (ROOT / script).read_text()] == []


def test_tables_name_commands_that_are_there() -> None:
    texts = {command.text for command in COMMANDS}
    assert (set(NOT_RUN) | set(UNTIL_STOPPED_S) | set(BESIDE) | set(ENDS_WITH_1)) - texts == set()
    assert [page for page, test in ELSEWHERE.items() if page not in PAGES or not (ROOT / test).exists()] == []


def test_quick_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = prepare(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    ran = []
    for command in COMMANDS:
        arguments = command.text.removeprefix("gpualloc ").partition(" > ")[0]
        is_quick = arguments.startswith(QUICK) and command.text not in UNTIL_STOPPED_S and command.text not in ran
        if is_quick and command.page not in ELSEWHERE and "delete" not in arguments:
            done = CliRunner().invoke(app, shlex.split(arguments))
            assert done.exit_code == 0, (command, done.stderr)
            ran.append(command.text)
    assert len(ran) > 30


def units() -> list[Any]:
    """Commands that share a folder: those of a page; of the reference, those of one command with its sub-commands."""
    together = groupby(
        COMMANDS, key=lambda each: (each.page, each.words[1] if each.page == "docs/reference.md" and each.words[0] == "gpualloc" else "")
    )
    found: dict[tuple[str, str], list[Command]] = {}
    for key, commands in together:
        found.setdefault(key, []).extend(commands)
    return [pytest.param(commands, id=" ".join(key).strip()) for key, commands in found.items() if key[0] not in ELSEWHERE]


@pytest.mark.docs
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("commands", units())
def test_the_page_runs_as_it_is_written(commands: list[Command], tmp_path: Path) -> None:
    environment = prepare(tmp_path)
    beside: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            if command.text in NOT_RUN:
                continue
            put_files_for(command.text, tmp_path)
            process = start(command.text, tmp_path, environment)
            if command.text in BESIDE:
                beside.append(process)
                wait_for_ranks(tmp_path)
                continue
            check(command.text, process)
        for process in beside:
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0 or "stopped as asked" in printed, (process.returncode, printed)
    finally:
        for process in beside:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_ranks(folder: Path) -> None:
    """Until a job runs and its ranks have begun to print."""
    until = time.monotonic() + 60
    while not any((folder / "jobs").glob("13-*/attempt1/rank1.log")):
        assert time.monotonic() < until, "the plan does not start"
        time.sleep(0.2)


def start(text: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        ["bash", "-c", text.replace("4711", str(os.getpid()))], cwd=folder, env=environment, text=True, start_new_session=True, **pipes
    )


def is_over_budget(text: str, printed: str) -> bool:
    """Whether nothing of a benchmark fits into the minutes that the folder's settings give it: on a machine where others work, too."""
    return text.startswith("gpualloc bench") and "budget: did not fit" in printed and not re.search(r": (failed|oom): ", printed)


def check(text: str, process: subprocess.Popen[str]) -> None:
    limit_s = UNTIL_STOPPED_S.get(text)
    try:
        printed, _ = process.communicate("y\n", timeout=limit_s or 600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL if limit_s is None else signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
        assert limit_s is not None, f"{text} goes on for ten minutes:\n{printed}"
        assert process.returncode in (0, 130), (text, process.returncode, printed)
    else:
        assert limit_s is None, f"{text} ends by itself:\n{printed}"
        is_expected = process.returncode == 1 and (ENDS_WITH_1.get(text, "nothing") in printed or is_over_budget(text, printed))
        assert process.returncode == 0 or is_expected, (text, process.returncode, printed)
