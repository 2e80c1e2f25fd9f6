"""The measured checks for real, in processes of their own; and probes that fail, die and hang."""

from collections.abc import Iterator

import pytest

from gpualloc.doctor import measured
from gpualloc.doctor.probe_server import ProbeError, ProbeServer


@pytest.fixture(scope="module")
def server() -> Iterator[ProbeServer]:
    with ProbeServer() as started:
        yield started


def test_a_gloo_all_reduce_runs_and_its_sum_is_right(server: ProbeServer) -> None:
    finding = measured.check_gloo(server)
    assert finding.status == "OK"
    assert finding.seen.startswith("2 ranks, exact, busbw ")


def test_a_loader_is_measured(server: ProbeServer) -> None:
    finding = measured.check_loader(server)
    assert finding.status in ("OK", "WARN")  # a busy machine is slow
    assert "images/s alone" in finding.seen


def test_an_interface_that_is_not_there_fails_with_the_rank(server: ProbeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProbeError, match="rank 0: "):
        server.run("all_reduce", backend="nosuch")


def test_a_probe_that_hangs_is_ended_in_time_and_the_next_one_runs(server: ProbeServer) -> None:
    with pytest.raises(ProbeError, match=r"rank 0, 1 did not end within 0.3 s"):
        server.run("sleep", world_size=2, timeout_s=0.3, seconds=60)
    assert len(server.run("sleep", world_size=2, seconds=0)) == 2


def test_a_server_that_died_is_told() -> None:
    with ProbeServer() as mortal:
        mortal._process.kill()
        mortal._process.wait()
        with pytest.raises(ProbeError, match="died"):
            mortal.run("sleep", seconds=0)
