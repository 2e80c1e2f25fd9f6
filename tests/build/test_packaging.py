"""What the source distribution holds, where the version stands, and that configuration files are what their readers expect."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a clone")
    return done.stdout.splitlines()


def test_the_source_distribution_holds_every_tracked_file() -> None:
    from setuptools.command.egg_info import FileList

    files = FileList()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        for line in Path("MANIFEST.in").read_text().splitlines():
            files.process_template_line(line)
    held = {*map(str, files.files), "README.md", "pyproject.toml", "setup.py", "MANIFEST.in"}  # which are always in
    packaged = {name for name in tracked() if name.startswith("gpualloc/") and name.endswith(".py")}  # by packages.find
    assert set(tracked()) - held - packaged == set()
    assert not [name for name in held if name.endswith((".so", ".pyc", "_build_info.json"))]


def test_every_package_and_its_data_are_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    data = [name for name in tracked() if name.startswith("gpualloc/") and not name.endswith(".py")]
    for name in data:
        package = ".".join(Path(name).parts[:2])
        assert any(Path(name).relative_to(package.replace(".", "/")).match(pattern) for pattern in settings.get(package, [])), name
    folders = {Path(name).parent for name in tracked() if name.startswith("gpualloc/") and name.endswith(".py")}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_the_version_stands_in_one_place() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    sources = [
        name for name in tracked() if name.startswith(("gpualloc/", "csrc/", "build_backend/")) or name in ("setup.py", "CMakeLists.txt")
    ]
    stated = re.compile(rf"""(__version__|\bVERSION)\s*[=:]?\s*["']?{re.escape(version)}\b""")
    assert [name for name in sources if name.endswith((".py", ".txt", ".cpp", ".h")) and stated.search((ROOT / name).read_text())] == []


def test_the_licence_is_the_one_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == {"text": "Apache-2.0"}
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_workflows_and_hooks_are_yaml_and_what_they_run_is_there() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                assert ("uses" in step) != ("run" in step)
                for script in re.findall(r"bash (\S+)", step.get("run", "")):
                    assert (ROOT / script).is_file()
    hooks = {
        hook["id"] for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repository["hooks"]
    }
    assert {"ruff", "ruff-format"} <= hooks


def test_what_contributors_are_told_to_edit_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in (
        "cli/app.py",
        "strategies/limits.py",
        "strategies/data_parallel.py",
        "workloads/models.py",
        "bench/study.py",
        "doctor/__init__.py",
    ):
        assert name in text
        assert (ROOT / "gpualloc" / name).is_file()


def test_importing_warns_of_nothing() -> None:
    program = "import gpualloc, gpualloc.cli.app; gpualloc.register_comm_hook"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
