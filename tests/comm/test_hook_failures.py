"""A peer that dies, stalls or raises: a clear error in backward within the group's timeout, and no hang. With every hook."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.comm import failure_scenarios as scenarios
from tests.comm.hook_table import EVERY_HOOK
from tests.ranks import run_ranks

HOOKS = ("stock", *EVERY_HOOK)
SLACK_S = 10  # for a loaded machine; a hang is ended after 60


@pytest.mark.parametrize("hook", HOOKS)
def test_killed_peer_is_an_error_at_once(hook: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match="rank 2 died without a word"):
        run_ranks(scenarios.peer_dies, 3, "cpu", hook, str(tmp_path), timeout_s=60)
    assert time.monotonic() - started < 30  # the survivors' interpreters end too
    for rank in (0, 1):
        waited_s, steps, error = (tmp_path / f"{hook}-{rank}").read_text().split("\n", 2)
        assert error.startswith("RuntimeError")
        assert "gloo" in error
        assert float(waited_s) < SLACK_S  # not the 60 s of the group
        assert steps == "4"


def test_stalled_peer_is_an_error_after_the_timeout() -> None:
    seen, _ = run_ranks(scenarios.peer_stalls, 2, "cpu", HOOKS, timeout_s=60)
    assert set(seen) == set(HOOKS)
    for hook, (error, waited_s, steps) in seen.items():
        assert_timed_out(error, waited_s)
        assert waited_s >= 0.9 * scenarios.TIMEOUT_S, hook
        assert steps == 4, hook


def test_a_hook_that_raises_on_one_rank_ends_both() -> None:
    (error, _), (peers_error, waited_s) = run_ranks(scenarios.hook_raises, 2, "cpu", timeout_s=60)
    assert error == "ValueError: the user's own error"
    assert_timed_out(peers_error, waited_s)


def assert_timed_out(error: str, waited_s: float) -> None:
    assert re.match("RuntimeError: .*(Timed out waiting|timeout caused pair closure)", error)
    assert waited_s < scenarios.TIMEOUT_S + SLACK_S
