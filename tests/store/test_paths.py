from pathlib import Path

import pytest

from gpualloc.store import default_store_path


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GPUALLOC_STORE": "/data/team.sqlite", "XDG_DATA_HOME": "/xdg"}, "/data/team.sqlite"),
        ({"GPUALLOC_STORE": "~/mine.sqlite"}, "/home/ada/mine.sqlite"),
        ({"XDG_DATA_HOME": "/xdg"}, "/xdg/gpualloc/results.sqlite"),
        ({"XDG_DATA_HOME": "relative/is/invalid"}, "/home/ada/.local/share/gpualloc/results.sqlite"),
        ({"GPUALLOC_STORE": "", "XDG_DATA_HOME": ""}, "/home/ada/.local/share/gpualloc/results.sqlite"),
        ({}, "/home/ada/.local/share/gpualloc/results.sqlite"),
    ],
)
def test_default_store_path(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for name in ("GPUALLOC_STORE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_store_path() == Path(expected)
