"""The table that is drawn while GPUs are watched, and the warnings beside it."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from gpualloc.cli.watch_run import _Flags
from gpualloc.cli.watch_tables import live_view, sample_line
from gpualloc.watching import DeviceSample, WasteRule
from gpualloc.watching.ledger import DeviceLedger, Ledger
from tests.watching.made_samples import GPU, HOST, process, series

RULE = WasteRule()
NOTE = Text("a note")
PROCESSES = tuple(process(pid, "ada", gpu_memory_bytes=pid * 2**30, command=f"python train{pid}.py") for pid in range(1, 31))


def after(*parts: tuple[float, float | None], of: DeviceSample = GPU, **changes: Any) -> tuple[DeviceSample, DeviceLedger]:
    """The last sample, and the ledger of all."""
    ledger = Ledger(RULE)
    for sample in series(*parts, of=of, **changes):
        device = ledger.add(sample)
    return sample, device


def shown(*pairs: tuple[DeviceSample, DeviceLedger], width: int = 120, max_rows: int = 40) -> str:
    console = Console(width=width, record=True, markup=False, highlight=False, file=open("/dev/null", "w"))  # noqa: SIM115
    samples, ledgers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    console.print(live_view(samples, ledgers, RULE, [NOTE], width=width, max_rows=max_rows))
    console.file.close()
    return console.export_text(styles=True)


IDLE = after((905, 0.0))
BUSY = after((900, 95.0), device_uuid="GPU-1111", device_index=1, processes=PROCESSES)
LOW = after((905, 20.0), device_uuid="GPU-2222", device_index=2)
IDLE_FOR_A_MINUTE = after((600, 95.0), (65, 0.0), device_uuid="GPU-3333", device_index=3)
UNKNOWN = after((900, None), device_uuid="MIG-abcdefgh-1", kind="mig", device_index=None, power_w=None, processes=None)
ON_HOST = after((900, 1.0), of=HOST)


@pytest.mark.parametrize("width", [40, 60, 100, 160])
def test_the_table_fits(width: int) -> None:
    lines = Text.from_ansi(shown(IDLE, BUSY, LOW, UNKNOWN, ON_HOST, width=width)).plain.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split()[:3] == ["device", "util", "%"]
    assert [line[:5] for line in lines[1:6]] == ["GPU 0", "GPU 1", "GPU 2", "MIG a", "host "]
    assert ("NVIDIA H100" in lines[1]) == (width >= 100)
    assert lines[-1] == "a note"


def test_states_are_told_and_coloured_where_they_last() -> None:
    lines = shown(IDLE, BUSY, LOW, IDLE_FOR_A_MINUTE, UNKNOWN, ON_HOST).splitlines()[1:7]
    assert "idle 15m" in lines[0]
    assert "\x1b[1;31m" in lines[0]
    assert "low 15m" in lines[2]
    assert "\x1b[33m" in lines[2]
    assert "idle 1m" in lines[3]
    assert "\x1b" not in lines[1] + lines[3] + lines[4]
    assert "idle" not in lines[5]  # a host that has GPUs is not judged
    assert "idle" in shown(ON_HOST).splitlines()[1]


@pytest.mark.parametrize(("max_rows", "num_shown"), [(10, 3), (24, 17), (100, 30), (2, 0)])
def test_the_largest_processes_are_shown_where_there_is_room(max_rows: int, num_shown: int) -> None:
    text = shown(BUSY, ON_HOST, max_rows=max_rows)
    pids = [int(line.split()[0]) for line in text.splitlines() if "train" in line]
    assert pids == list(range(30, 30 - num_shown, -1))
    assert (f"{30 - num_shown} processes more" in text) == (0 < num_shown < 30)
    assert len(text.splitlines()) <= max(max_rows, 4)


def test_a_line_in_a_log_has_its_units_and_no_control_characters() -> None:
    assert sample_line(BUSY[0]) == (
        "2026-11-26T00:15:00Z  GPU 1  util 95 %  memory 40.0/80.0 GiB  power 600 W  SM 1980 MHz  60 °C  "
        "held back by power cap  30 processes"
    )
    assert sample_line(UNKNOWN[0]).startswith("2026-11-26T00:15:00Z  MIG abcdefgh  util - %")
    assert "\x1b" not in sample_line(series((5, 1.0), throttle_reasons=("\x1b[31m",))[0])


def test_a_gpu_is_warned_of_once_for_each_time_it_idles(capsys: pytest.CaptureFixture[str]) -> None:
    flags, ledger = _Flags(RULE), Ledger(RULE)
    for sample in series((300, 95.0), (1200, 0.0), (600, 20.0), (120, 95.0), (700, 1.0)):
        flags.warn([sample, ON_HOST[0]], [ledger.add(sample), ON_HOST[1]], None)
    assert capsys.readouterr().err.splitlines() == [
        "gpualloc: warning: GPU 0 is idle: below 5 % for 10m",
        "gpualloc: warning: GPU 0 is idle: below 5 % for 10m",
    ]
    for sample in series((300, 95.0), (1300, 20.0), start_s=9000):
        flags.warn([sample], [ledger.add(sample)], None)
    assert capsys.readouterr().err == "gpualloc: warning: GPU 0 is low: below 40 % for 10m\n"


def test_a_store_that_fails_is_warned_of_once_until_it_works_again(capsys: pytest.CaptureFixture[str]) -> None:
    flags = _Flags(None)
    for problem in ("disk full", "disk full", None, "disk full"):
        flags.warn([], [], problem)
    assert capsys.readouterr().err.count("warning: disk full; watching goes on") == 2
