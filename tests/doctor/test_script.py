"""What is found in a training script: all that is wrong in those that are, and nothing in those that are right."""

from pathlib import Path

import pytest

from gpualloc.doctor.script import SCRIPT_CHECKS, check_script
from gpualloc.errors import UsageError

SCRIPTS = Path(__file__).parent / "scripts"
EXAMPLES = Path(__file__).parents[2] / "examples"


def found(script: Path) -> set[tuple[str, int]]:
    """(rule, line) of each finding."""
    return {(finding.name, int(str(finding.place).rpartition(":")[2])) for finding in check_script(script) if finding.status != "OK"}


def expected(script: Path) -> set[tuple[str, int]]:
    """By the rules named in comments at the ends of lines."""
    marks = [
        (number, line.rpartition("  # ")[2].split()) for number, line in enumerate(script.read_text().splitlines(), 1) if "  # " in line
    ]
    return {(rule, number) for number, rules in marks for rule in rules}


@pytest.mark.parametrize("name", ["wrong.py", "wrong_in_functions.py"])
def test_every_fault_is_found_on_its_line_and_nothing_else(name: str) -> None:
    assert found(SCRIPTS / name) == expected(SCRIPTS / name)


def test_the_wrong_scripts_break_every_rule() -> None:
    broken = expected(SCRIPTS / "wrong.py") | expected(SCRIPTS / "wrong_in_functions.py")
    assert {rule for rule, _ in broken} == set(SCRIPT_CHECKS)


@pytest.mark.parametrize("name", ["right_ddp.py", "right_accumulating.py", "right_cpu.py"])
def test_nothing_is_found_in_a_right_script(name: str) -> None:
    assert found(SCRIPTS / name) == set()


def test_of_the_examples_only_a_loss_kept_at_every_step_and_memory_that_is_not_pinned_is_told() -> None:
    rules = {path.name: {rule for rule, _ in found(path)} for path in EXAMPLES.glob("*_hook.py")}
    assert rules["trainer_hook.py"] == set()
    assert set().union(*rules.values()) <= {"sync-point", "pin-memory"}


def test_a_rule_without_findings_is_ok_and_summed_gradients_fail() -> None:
    by_rule = {finding.name: finding for finding in check_script(SCRIPTS / "right_ddp.py")}
    assert {rule: (finding.status, finding.advice) for rule, finding in by_rule.items()} == dict.fromkeys(SCRIPT_CHECKS, ("OK", None))
    failed = [finding for finding in check_script(SCRIPTS / "wrong.py") if finding.status == "FAIL"]
    assert [finding.seen for finding in failed] == [
        "dist.all_reduce(parameter.grad) sums gradients and nothing divides them: a step is as many times too long as there are ranks"
    ]
    assert all(finding.advice for finding in check_script(SCRIPTS / "wrong.py") if finding.status != "OK")


LOOP = """
import torch
model = torch.nn.Linear(8, 1).cuda()
for step, (x, y) in enumerate(batches):
    loss = criterion(model(x.cuda()), y.cuda())
    loss.backward()
    optimizer.step()
    {line}
"""


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("losses.append(loss.item())", True),
        ("losses.append(loss.detach())", False),
        ("if step % 10 == 0: print(loss.item())", False),
        ("if rank == 0: print(loss.item())", True),
        ("if rank == 0 and step % 10 == 0: print(loss.item())", False),
        ("wanted and print(loss.item())", False),
        ("shown = loss.item() if step % 10 == 0 else shown", False),
        ("later(lambda: loss.item())", False),
        ("for p in model.parameters(): norms.append(p.grad.norm().item())", True),
        ("with timer: print(loss)", True),
        ("print(step)", False),
        ("x = np.mean(values).item()", False),
        ("output = output.to('cpu')", True),
        ("output = output.to('cpu', non_blocking=True)", False),
        ("if loss > 10: break", True),
        ("if loss is None: break", False),
        ("assert not torch.isnan(loss)", True),
        ("torch.cuda.empty_cache()", True),
        ("losses.append(loss.item())  # gpualloc: ignore", False),
        ("losses.append(loss.item())  # gpualloc: ignore[sync-point, rescaling]", False),
        ("losses.append(loss.item())  # gpualloc: ignore[rescaling]", True),
    ],
)
def test_what_waits_for_the_gpu_at_every_step(line: str, is_found: bool, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(LOOP.format(line=line))
    assert (("sync-point", 8) in found(script)) == is_found


def test_modules_beside_the_script_count(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "from torch.utils.data import DataLoader, DistributedSampler\n"
        "def make(dataset):\n"
        "    sampler = DistributedSampler(dataset)\n"
        "    return DataLoader(dataset, sampler=sampler, num_workers=4, pin_memory=True)\n"
    )
    script = tmp_path / "train.py"
    loop = "from data import make\nfor epoch in range(3):\n{first}    for x in make(dataset):\n        model(x).backward()\n"
    script.write_text(loop.format(first=""))
    (finding,) = [finding for finding in check_script(script) if finding.status != "OK"]
    assert (finding.name, finding.place) == ("set-epoch", f"{tmp_path / 'data.py'}:3")
    script.write_text(loop.format(first="    loader.sampler.set_epoch(epoch)\n"))
    assert found(script) == set()


@pytest.mark.parametrize("framework", ["lightning", "accelerate", "transformers"])
def test_a_framework_that_sets_the_epoch_is_left_alone(framework: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        f"import {framework}\nfrom torch.utils.data import DistributedSampler\n"
        "sampler = DistributedSampler(dataset)\nfor x in sampler:\n    f(x).backward()\n"
    )
    assert found(script) == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [("def f(:\n", "train.py:1 is not Python"), (None, "cannot be read"), ("x = '\\0'".replace("\\0", "\0"), "is not Python")],
)
def test_what_is_no_script_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    if text is not None:
        script.write_text(text)
    with pytest.raises(UsageError, match=message):
        check_script(script)


def test_nothing_of_the_script_runs(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit('it ran')\n")
    assert {finding.status for finding in check_script(script)} == {"OK"}
