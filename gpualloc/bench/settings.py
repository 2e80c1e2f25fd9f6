"""How the cases of a grid are run, as against what they are: `--resume` may change all of it."""

from __future__ import annotations

from dataclasses import dataclass

from gpualloc.errors import UsageError

ON_OOM = ("mark", "halve")
ON_BUSY = ("warn", "error", "skip")
_DEFAULT_ROUNDS = {"cuda": 2, "cpu": 1}  # on a CPU a round takes as long as its repeats, and drift is not what blurs them
_DEFAULT_CI_PERCENT = {"cuda": 2.0, "cpu": 5.0}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Checked value by value on construction.

    Raises:
        UsageError: naming the value and what is allowed.
    """

    rounds: int = 1  # groups of fresh processes for each case
    ci_percent: float = 5.0  # half of the 95 % confidence interval that repeats stop at, in percent of the step time
    on_oom: str = "mark"
    on_busy: str = "warn"
    timeout_s: float = 600.0  # for one case
    max_minutes: float | None = None  # for all cases

    def __post_init__(self) -> None:
        _check_number("--rounds", self.rounds, 1, 100)
        _check_number("--ci-percent", self.ci_percent, 0.01, 100)
        _check_number("--timeout-s", self.timeout_s, 1, 10**7)
        if self.max_minutes is not None:
            _check_number("--max-minutes", self.max_minutes, 0.1, 10**5)
        for option, value, allowed in (("--on-oom", self.on_oom, ON_OOM), ("--on-busy", self.on_busy, ON_BUSY)):
            if value not in allowed:
                raise UsageError(f"{option} {value!r} is unknown; choose one of {', '.join(allowed)}")


def make_settings(device: str, **given: object) -> RunSettings:
    """The settings given, with the device's defaults for those that are absent or None.

    Raises:
        UsageError: as `RunSettings`.
    """
    defaults: dict[str, object] = {"rounds": _DEFAULT_ROUNDS[device], "ci_percent": _DEFAULT_CI_PERCENT[device]}
    settings = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    return RunSettings(**settings)  # type: ignore[arg-type]


def _check_number(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{option} {value:g} is out of range; choose {low:g} to {high:,}")
