"""What docs/security.md promises of the code, and of the files that it writes by names that users give."""

import ast
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpualloc.errors import GpuallocError
from gpualloc.launch.leases import LeaseStore
from gpualloc.plan.workloads import read_workloads
from gpualloc.store import ResultsStore
from gpualloc.train import checkpoint
from gpualloc.whole_files import write_whole
from tests.launch import plans

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("gpualloc", "benchmarks", "build_backend", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "commands.getoutput",
    "subprocess.getoutput",
    "jinja2.Template",
}


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr], int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {each.arg: each.value for each in node.keywords if each.arg}, node.lineno


def faults_of(source: str) -> list[str]:
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [f"{node.lineno}: {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
    for name, keywords, line in calls(tree):
        is_weights_only = isinstance(keywords.get("weights_only"), ast.Constant) and keywords["weights_only"].value is True
        if (
            name in FORBIDDEN_CALLS
            or (name == "torch.load" and not is_weights_only)
            or (name.startswith("yaml.") and "load" in name and not name.startswith("yaml.safe_load"))
            or ("shell" in keywords and not (isinstance(keywords["shell"], ast.Constant) and keywords["shell"].value is False))
            or "allow_pickle" in keywords
        ):
            found.append(f"{line}: {name}")
    return found


def test_no_source_runs_what_a_file_holds() -> None:
    assert len(SOURCES) > 300
    found = {str(path.relative_to(ROOT)): faults for path in SOURCES if (faults := faults_of(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.full_load(text)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import subprocess\nsubprocess.run(words, shell=True)",
        "eval(text)",
        "import os\nos.system(text)",
    ],
)
def test_the_search_finds_each_kind(source: str) -> None:
    assert len(faults_of(source)) == 1


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"version": 1, "model": Harmful()}, tmp_path / "c.pt")
    model = torch.nn.Linear(1, 1)
    with pytest.raises(GpuallocError, match=r"c\.pt cannot be read"):
        checkpoint.load(tmp_path / "c.pt", model, torch.optim.SGD(model.parameters(), lr=1.0))
    assert not (tmp_path / "ran").exists()


def test_a_tag_in_a_yaml_file_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(f"workloads: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    with pytest.raises(GpuallocError):
        read_workloads(path)
    assert not (tmp_path / "ran").exists()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_stores_are_for_their_owner_and_what_is_asked_for_has_the_umasks_mode(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with ResultsStore(tmp_path / "new" / "results.sqlite"), LeaseStore(tmp_path / "new" / "state.sqlite"):
            pass
        plans.write(tmp_path, plans.assignment("text", command=("true",)))
    finally:
        os.umask(before)
    assert [mode(tmp_path / "new" / name) for name in ("", "results.sqlite", "state.sqlite")] == [0o700, 0o600, 0o600]
    assert mode(tmp_path / "plan.json") == 0o644


def test_jobs_names_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither gpualloc's folders nor torchrun's, which is called after its rendezvous."""
    folder, temporary = tmp_path / "deep" / "down", tmp_path / "temporary" / "of" / "torchrun"
    folder.mkdir(parents=True)
    temporary.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(temporary))
    names = ["../../up", f"{tmp_path}/line\nbreak/../{'x' * 60}"]
    path = plans.write(folder, *(plans.assignment(name, command=("true",), cores=(0,)) for name in names))
    done = plans.run(folder, "run", path, "--json")
    assert done.returncode == 0, done.stderr
    assert {log.parents[2] for log in folder.rglob("agent.log")} == {folder / "jobs"}
    assert [mode(each) for each in (folder / "jobs").iterdir()] == [0o700, 0o700]  # what a job prints is for its owner
    parents = (tmp_path, folder.parent, temporary.parent, temporary.parent.parent)
    assert [sorted(each.name for each in parent.iterdir()) for parent in parents] == [["deep", "temporary"], ["down"], ["torchrun"], ["of"]]


def test_a_jobs_name_adds_no_line_to_slurms_script(tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.assignment("a\ntouch /tmp/x #", command=("a.py",), gpu_type="H100"))
    done = plans.run(tmp_path, "run", path, "--engine", "slurm", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --job-name=a_touch__tmp_x__\n" in done.stdout
    assert "export GPUALLOC_JOB='a\ntouch /tmp/x #'\n" in done.stdout


@pytest.mark.parametrize("name", ["../../up", "/etc/cron.d/x", ".."])
def test_a_name_in_a_clusters_file_leads_nowhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    path = plans.write(folder, plans.assignment(name, command=("a.py",), gpu_type="H100"))
    done = plans.run(folder, "run", path, "--engine", "skypilot", "--output", str(folder / "files"))
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "files").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["deep", "down", "files"]


@pytest.mark.parametrize("name", ["../up", "/tmp/x", ".hidden", "a b", ""])
def test_a_links_name_is_a_files_name(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "gpualloc", "calibrate", "--name", name], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "so that it can be a file's name" in done.stderr) == (2, True)


def test_files_are_replaced_whole_and_links_are_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "report.html"
    victim.write_text("mine")
    path.symlink_to(victim)
    for planted in (".report.html.unfinished", ".report.html.tmp", "report.html.part"):
        (tmp_path / planted).symlink_to(victim)
    write_whole(path, "page")
    assert (path.is_symlink(), path.read_text(), victim.read_text()) == (False, "page", "mine")
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path, "page")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TypeError):
        write_whole(path, object())  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before
    assert path.read_text() == "page"


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_whole(Path("/dev/null"), "page")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), "page")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
