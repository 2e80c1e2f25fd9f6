"""`gpualloc study`: a guided small experiment that answers one question within a time budget."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpualloc.bench.precision import PRECISIONS
from gpualloc.cli.progress import show_parts
from gpualloc.errors import GpuallocError, StoreError, UsageError
from gpualloc.strategies import HOOKS, STRATEGIES

if TYPE_CHECKING:
    from gpualloc.bench.grid_run import Progress as CaseProgress
    from gpualloc.experiment import Conclusion, Question
    from gpualloc.records import Environment

_MAX_MINUTES = 10**5


def _option(help: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help, metavar=metavar)


def study(
    ctx: typer.Context,
    model: Annotated[str, _option("As in gpualloc bench.", "NAME")] = "mobilenet_v2",
    image_size: Annotated[str | None, _option("Pixels; several to look for the threshold among them.", "LIST")] = None,
    sequence_length: Annotated[str | None, _option("Tokens, likewise.", "LIST")] = None,
    batch_size: Annotated[str | None, _option("Samples per GPU, likewise (default: by model and device).", "LIST")] = None,
    precision: Annotated[str, _option(f"{', '.join(PRECISIONS)}; of several the fastest on one GPU goes on.", "LIST")] = "fp32",
    strategy: Annotated[str, _option(f"How several GPUs are used: {', '.join(STRATEGIES[1:])}.", "NAME")] = "ddp",
    hook: Annotated[str, _option(f"Of ddp: {', '.join(HOOKS)}.", "NAME")] = "none",
    gpus: Annotated[str | None, _option("Their number (default: all).", "COUNT")] = None,
    rehearse: Annotated[str | None, _option("Or a number of GPUs to rehearse on one.", "COUNT")] = None,
    link: Annotated[str | None, _option("Of the rehearsed cluster, inside a node.", "NAME|FILE")] = None,
    network: Annotated[str | None, _option("Of the rehearsed cluster, between nodes.", "NAME|FILE")] = None,
    gpus_per_node: Annotated[int | None, _option("Of the rehearsed cluster (default: 8).", "COUNT")] = None,
    min_efficiency: Annotated[float, _option("The bar above which more GPUs pay.", "FRACTION")] = 0.8,
    max_minutes: Annotated[float, _option("The budget: no step is begun that does not fit.", "MINUTES")] = 10.0,
    data: Annotated[str | None, _option("As in gpualloc bench.", "NAME|PATH")] = None,
    device: Annotated[str | None, _option("cuda or cpu (default: cuda where there is a GPU).", "cuda|cpu")] = None,
    warmup_steps: Annotated[int | None, _option("Untimed steps at the start.", "COUNT")] = None,
    steps: Annotated[int | None, _option("Timed steps per repeat.", "COUNT")] = None,
    repeats: Annotated[int | None, _option("Repeats in a round.", "COUNT")] = None,
    ci_percent: Annotated[
        float | None, _option("Repeats of a round end when half of their 95 % interval is this much of the step time.", "PERCENT")
    ] = None,
    seed: Annotated[int | None, _option("Of weights and data (default: 0).", "NUMBER")] = None,
    timeout_s: Annotated[float, _option("Longest time for one case, in seconds.", "SECONDS")] = 600.0,
    on_busy: Annotated[str, _option("Where another process is on the device: warn, error or skip.", "NAME")] = "warn",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the question, the first step and the most that can be needed; run nothing.")
    ] = False,
    out: Annotated[Path | None, _option("Folder for study.json and study.md (default: studies/RUN beside the results).", "FOLDER")] = None,
    store: Annotated[
        Path | None, _option("Results file (else $GPUALLOC_STORE, else ~/.local/share/gpualloc/results.sqlite).", "PATH")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Study one question with few runs: do more GPUs pay for a model, or from which size on?

    One step after the other is planned from what the last ones told: the largest size, the smallest, then where a forecast
    from these puts the threshold, with further rounds where it is too close to call. It stops when the answer is certain, or
    the budget is spent.

    Examples:
      gpualloc study --model resnet50 --precision fp32,bf16 --max-minutes 15
      gpualloc study --image-size 100..500:50 --precision fp16 --gpus 4
      gpualloc study --model gpt2 --batch-size 2,4,8,16 --rehearse 8 --link nvlink4
    """
    from gpualloc.bench import environment as machine
    from gpualloc.bench.dry_run import read_history
    from gpualloc.bench.grid import expand_grid
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.bench.notation import NOTATIONS, parse_options
    from gpualloc.bench.options import BenchOptions
    from gpualloc.bench.settings import make_settings
    from gpualloc.experiment import conclude, make_question, run_steps
    from gpualloc.experiment.run import Progress
    from gpualloc.store import ResultsStore, default_store_path

    if not 0 < min_efficiency <= 1:
        raise UsageError(f"--min-efficiency {min_efficiency:g} is out of range; choose a fraction above 0, up to 1")
    if not 0.1 <= max_minutes <= _MAX_MINUTES:
        raise UsageError(f"--max-minutes {max_minutes:g} is out of range; choose 0.1 to {_MAX_MINUTES:,}")
    if strategy == "single" or "," in strategy + hook:
        raise UsageError(f"--strategy {strategy} --hook {hook}: a study compares one GPU with one way to use several; name one of each")
    given = parse_options({name: value for name, value in ctx.params.items() if name in NOTATIONS})
    given["strategies"] = ("single", *given["strategies"])
    if strategy != "ddp":
        del given["hooks"]

    def make_options(chosen_device: str) -> BenchOptions:
        BenchOptions(device=chosen_device, **given)  # refuses an unknown model before its workload is asked for
        return BenchOptions(device=chosen_device, **{"image_sizes_px": _default_sizes(model, given, chosen_device), **given})

    make_options(device or "cpu")  # refuses a wrong value before torch is loaded, which takes seconds
    options = make_options(machine.choose_device(device))
    settings = make_settings(options.device, timeout_s=timeout_s, on_busy=on_busy, ci_percent=ci_percent)
    memory_bytes = machine.read_device_memory_bytes(options.device)
    cells = expand_grid(options, num_gpus=machine.count_gpus(), device_memory_bytes=memory_bytes)
    question = make_question(cells, min_efficiency=min_efficiency)
    environment = machine.detect_environment(options.device)
    path = store or default_store_path()
    command = shlex.join(["gpualloc", *sys.argv[1:]])
    if dry_run:
        _print_plan(question, environment, path, max_minutes, as_json=as_json)
        return
    progress = Progress()
    exit_code = 0
    with ResultsStore(path) as results:
        from dataclasses import asdict

        history = read_history(results)
        run_id = results.begin_run(command=command, options=asdict(options), environment=environment)
        try:
            with interruptible():
                run_steps(
                    question,
                    store=results,
                    run_id=run_id,
                    environment=environment,
                    max_minutes=max_minutes,
                    settings=settings,
                    history=history,
                    progress=progress,
                    say=_say,
                    show=_show,
                )
        except BaseException as error:
            with suppress(StoreError):  # the error at hand says more
                results.finish_run(run_id, "interrupted")
            if not isinstance(error, Interrupted):
                raise
            _say(f"interrupted ({error}); what was measured is kept and concluded from")
            exit_code = error.exit_code
        else:
            results.finish_run(run_id, "complete")
    conclusion = conclude(question, progress, environment=environment, command=command, run_id=run_id)
    _write(conclusion, out or path.parent / "studies" / str(run_id))
    _print(conclusion, as_json=as_json)
    if exit_code or not conclusion.points:
        raise typer.Exit(exit_code or 1)


@contextmanager
def _show(case_s: Sequence[float]) -> Iterator[CaseProgress]:
    """Of one step of the study."""
    from gpualloc.cli.bench_run import case_teller

    with show_parts(case_s, are_seconds=True) as parts:
        yield case_teller(parts)


def _default_sizes(model: str, given: dict[str, Any], device: str) -> tuple[int, ...] | None:
    """One image size where no axis is given, so that the question is small."""
    from gpualloc.workloads import find_model

    if given.get("image_sizes_px") or given.get("sequence_lengths") or find_model(model).workload != "image":
        return None
    return (224,) if device == "cuda" else (100,)


def _print_plan(question: Question, environment: Environment, path: Path, max_minutes: float, *, as_json: bool) -> None:
    from dataclasses import asdict

    from gpualloc.bench.dry_run import read_history
    from gpualloc.bench.estimate import Estimator
    from gpualloc.cli.measurements_text import case_label
    from gpualloc.cli.tables import print_json, printable
    from gpualloc.experiment import Step, next_step
    from gpualloc.experiment.conclusion import question_text
    from gpualloc.experiment.plan import most_cases
    from gpualloc.store import ResultsStore

    history = []
    if path.exists():
        with ResultsStore(path, create=False) as results:
            history = read_history(results)
    estimator = Estimator(environment, history)
    first = next_step(question, {})
    case_s = {cell.case: estimator.estimate(cell.case).seconds for cell in (first.cells if isinstance(first, Step) else ())}
    longest_min = most_cases(question) * max(case_s.values(), default=0.0) / 60  # the first step is of the largest size
    if as_json:
        print_json(
            {
                "question": question_text(question),
                "first_step": {"why": first.why, "cases": [asdict(case) for case in case_s]},
                "most_cases": most_cases(question),
                "num_possible_cases": len(question.cells),
                "estimated_minutes_at_most": longest_min,
                "max_minutes": max_minutes,
            }
        )
        return
    print(printable(question_text(question)))
    print(printable(f"first step, {first.why}:"))
    for case, seconds in case_s.items():
        print(printable(f"  {case_label(case)}: about {seconds:.0f} s"))
    rest = f"at most {most_cases(question)} of {len(question.cells)} cases, about {longest_min:.1f} minutes"
    print(f"{rest}; a size that is too close to call takes up to 4 rounds; the budget is {max_minutes:g} minutes")


def _write(conclusion: Conclusion, folder: Path) -> None:
    from gpualloc.cli.tables import json_text
    from gpualloc.experiment.conclusion import conclusion_json, conclusion_markdown

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.json").write_text(json_text(conclusion_json(conclusion)) + "\n", encoding="utf-8")
        (folder / "study.md").write_text(conclusion_markdown(conclusion), encoding="utf-8")
    except OSError as error:
        raise GpuallocError(
            f"the conclusion cannot be written to {folder}: {error.strerror}; the runs are kept: gpualloc results show {conclusion.run_id}"
        ) from error
    _say(f"written to {folder}/study.md and study.json; time, cost and more GPUs: gpualloc advise --run {conclusion.run_id}")


def _print(conclusion: Conclusion, *, as_json: bool) -> None:
    from gpualloc.cli.study_text import print_conclusion
    from gpualloc.cli.tables import output_console, print_json
    from gpualloc.experiment.conclusion import conclusion_json

    if as_json:
        print_json(conclusion_json(conclusion))
    else:
        print_conclusion(conclusion, output_console())


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
