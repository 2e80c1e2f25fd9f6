"""`gpualloc bench --quality`: trains on real small data and says what each precision and hook does to the result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpualloc.cli.progress import show_parts
from gpualloc.errors import UsageError

if TYPE_CHECKING:
    from gpualloc.quality.options import PlannedRun
    from gpualloc.quality.records import Experiment, TrainingRun
    from gpualloc.quality.verdict import GroupVerdict
    from gpualloc.records import BenchCase, Environment


def _what(help: str, metavar: str | None = "LIST") -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="What is trained")


def _how(help: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="How")


def _out(help: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Results")


def quality(
    ctx: typer.Context,
    workload: Annotated[str | None, _what("image, llm (default: both).")] = None,
    model: Annotated[str | None, _what("Any of gpualloc bench (default: mobilenet_v2; gpt_small, on a CPU gpt_tiny).")] = None,
    image_size: Annotated[str | None, _what("Pixels, one value (default: 64; on a CPU 32).", "PX")] = None,
    sequence_length: Annotated[str | None, _what("Tokens, one value (default: 128; on a CPU 64).", "TOKENS")] = None,
    batch_size: Annotated[str | None, _what("Samples per rank and step, one value (default: 32; on a CPU 16).", "SAMPLES")] = None,
    precision: Annotated[str | None, _what("Beside fp32, the reference (default: fp16,bf16; on a CPU none).")] = None,
    hook: Annotated[str | None, _what("Beside none, the reference (default: with fp32 gpualloc's, otherwise none).")] = None,
    device: Annotated[str | None, _how("cuda or cpu (default: cuda where there is a GPU).", "cuda|cpu")] = None,
    gpus: Annotated[str | None, _how("Number of GPUs (default: all).", "COUNT")] = None,
    ranks_per_gpu: Annotated[int, _how("Ranks that share a GPU.")] = 1,
    steps: Annotated[int | None, _how("Training steps (default: 300; on a CPU 80 for images, 150 for text).")] = None,
    seeds: Annotated[int, _how("Trainings of each precision and hook: of seed, seed + 1, ...")] = 3,
    seed: Annotated[int, _how("The first one.")] = 0,
    learning_rate: Annotated[float | None, _how("At the start; it falls linearly to 0 (default: by workload).")] = None,
    target: Annotated[float | None, _how("Accuracy or loss to reach (default: by workload and device).")] = None,
    timeout_s: Annotated[float, _how("Longest time for one training, in seconds.")] = 600.0,
    output: Annotated[
        Path | None, _out("JSON file, kept after every training; trainings that it has already are not run again.", metavar="FILE")
    ] = None,
    read: Annotated[Path | None, _out("Train nothing, show what such a file holds.", metavar="FILE")] = None,
    plot: Annotated[Path | None, _out("Draw the loss curves as well, as .png, .svg or .pdf.", metavar="FILE")] = None,
    as_json: Annotated[bool, _out("Print JSON instead of the table.", "--json")] = False,
) -> None:
    """Train on real small data, over seeds: is it as good in that precision and with that hook, and how much faster?

    Examples:
      gpualloc bench --quality
      gpualloc bench --quality --workload image --precision fp32,fp16,bf16 --hook none,gpualloc_fp16 --plot curves.png
      gpualloc bench --quality --ranks-per-gpu 2 --output quality.json
      gpualloc bench --quality --read quality.json --plot curves.png
    """
    from gpualloc import plots
    from gpualloc.bench import environment as machine
    from gpualloc.bench.options import BenchOptions
    from gpualloc.quality.options import QualityOptions, plan_runs
    from gpualloc.quality.records import Experiment, read_experiment

    if plot is not None:
        plots.check_plot_path(plot)
    if read is not None:
        _show(read_experiment(read), target=target, plot=plot, as_json=as_json)
        return
    if device is not None:
        BenchOptions(device=device)  # refuses an unknown one before torch is loaded, which takes seconds
    options = QualityOptions(
        device=machine.choose_device(device),
        workloads=_names("--workload", workload),
        models=_names("--model", model),
        image_size_px=_number("--image-size", image_size),
        sequence_length=_number("--sequence-length", sequence_length),
        per_device_batch_size=_number("--batch-size", batch_size),
        precisions=_names("--precision", precision),
        hooks=_names("--hook", hook),
        num_gpus=_number("--gpus", gpus),
        ranks_per_gpu=ranks_per_gpu,
        num_steps=steps,
        num_seeds=seeds,
        first_seed=seed,
        learning_rate=learning_rate,
    )
    planned = plan_runs(options, num_gpus=machine.count_gpus())
    environment = machine.detect_environment(options.device)
    runs = _run(planned, environment, timeout_s=timeout_s, output=output, show_log=_say if ctx.find_root().params.get("debug") else None)
    _show(Experiment(environment=environment, runs=tuple(runs)), target=target, plot=plot, as_json=as_json)
    statuses = {run.status for run in runs}
    if not statuses & {"ok", "diverged"} or statuses & {"failed", "oom"}:
        raise typer.Exit(1)


def _run(planned: Sequence[PlannedRun], environment: Environment, *, output: Path | None, **settings: Any) -> list[TrainingRun]:
    """All trainings; on SIGINT and SIGTERM the command ends and the file has what had finished."""
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.quality.engine import run_trainings
    from gpualloc.quality.records import Experiment, write_experiment

    finished = _finished_runs(output, environment)
    first = planned[0].cell.case
    made = {(run.case.key(), run.learning_rate) for run in finished}
    is_left = [not run.cell.skip_reason and (run.cell.case.key(), run.learning_rate) not in made for run in planned]
    steps = [float(run.cell.case.num_steps) if left else 0.0 for run, left in zip(planned, is_left, strict=True)]
    _say(f"{len(planned)} trainings on {environment.device_name}, {first.world_size} {'gloo' if first.device == 'cpu' else 'nccl'} ranks")
    so_far: list[TrainingRun] = []

    def note(number: int, run: TrainingRun) -> None:
        so_far.append(run)
        parts.end(_line(run))
        if number + 1 < len(planned) and is_left[number + 1]:
            parts.begin(_name(planned[number + 1].cell.case))
        if output is not None:
            done = {(one.case.key(), one.learning_rate) for one in so_far}
            others = (one for one in finished if (one.case.key(), one.learning_rate) not in done)  # of another command, or its turn to come
            write_experiment(output, Experiment(environment=environment, runs=(*so_far, *others)))

    if output is not None:
        write_experiment(output, Experiment(environment=environment, runs=tuple(finished)))  # refuses before the first training
    try:
        with interruptible(), show_parts(steps) as parts:
            if is_left[0]:
                parts.begin(_name(first))
            return run_trainings(planned, finished=finished, progress=note, **settings)
    except Interrupted as error:
        kept = "without --output nothing is kept" if output is None else f"{output} has what finished; run again to go on"
        _say(f"interrupted ({error}): {kept}")
        raise typer.Exit(error.exit_code) from None


def _finished_runs(output: Path | None, environment: Environment) -> list[TrainingRun]:
    """What the file holds already.

    Raises:
        UsageError: of another machine or other versions.
    """
    from gpualloc.quality.records import read_experiment
    from gpualloc.store import environment_differences

    if output is None or not output.exists():
        return []
    found = read_experiment(output)
    differences = environment_differences(found.environment, environment)
    if differences:
        raise UsageError(f"--output {output} holds trainings of another machine or version: {'; '.join(differences)}; name a new file")
    return [run for run in found.runs if run.status in ("ok", "diverged")]


def _show(experiment: Experiment, *, target: float | None, plot: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from gpualloc import plots
    from gpualloc.cli.tables import output_console, print_json
    from gpualloc.quality.panels import panels
    from gpualloc.quality.records import experiment_to_json
    from gpualloc.quality.verdict import judge
    from gpualloc.quality.words import sentence

    verdicts = judge(experiment.runs, target=target)
    if as_json:
        groups = [{**asdict(verdict), "sentence": sentence(verdict)} for verdict in verdicts]
        print_json({**experiment_to_json(experiment), "verdicts": groups})
    else:
        _print_verdicts(verdicts, experiment.environment, output_console())
    if plot is not None:
        rows = panels(experiment.runs)
        if not rows:
            raise UsageError("--plot has nothing to draw: no training finished")
        plots.draw(rows, plot)
        _say(f"loss curves drawn to {plot}")


def _print_verdicts(verdicts: Sequence[GroupVerdict], environment: Environment, console: Any) -> None:
    import textwrap

    from rich.text import Text

    from gpualloc.cli.tables import printable, text_table
    from gpualloc.quality.words import group_name, sentence, value_text

    for model in dict.fromkeys(verdict.case.model for verdict in verdicts):
        group = [verdict for verdict in verdicts if verdict.case.model == model]
        case, metric, target = group[0].case, group[0].metric, group[0].target
        size = f"{case.image_size_px} px" if case.image_size_px else f"{case.sequence_length} tokens"
        ranks = f"{case.per_device_batch_size} per rank, {case.world_size} ranks"
        console.print(Text(printable(f"{model} on {case.data}, {size}, {ranks}, {case.num_steps} steps"), style="bold"), soft_wrap=True)
        for verdict in group:
            is_bad = verdict.verdict == "worse" or bool(verdict.problems)
            for text in (sentence(verdict), *verdict.problems):
                lines = textwrap.fill(printable(text), console.width, initial_indent="  ", subsequent_indent="    ")
                console.print(Text(lines, style="red" if is_bad else ""), soft_wrap=True)
        columns = ("seeds", metric, "lowest", "highest", f"to {value_text(group[0], target)}", "step ms", "wire MB", "curve")
        table = text_table("training", *columns, right=columns)
        for verdict in group:
            table.add_row(printable(group_name(verdict)), *_cells(verdict))
        console.print()
        console.print(table)
        console.print()
    about = "CPU, speed not comparable with a GPU" if verdicts[0].case.device == "cpu" else "speed of training on so little data"
    for note in (
        f"{printable(environment.device_name)}: {about}; accuracy and loss are of held-out data after the last step",
        "unchanged: the whole 95 % interval of the difference, seed by seed, is within the margin",
        "curve: points of the held-out loss that differ from the reference's by no more than noise",
    ):
        console.print(Text(note, style="dim"))


def _cells(verdict: GroupVerdict) -> list[str]:
    from gpualloc.quality.words import value_text

    seeds = f"{len(verdict.values)} of {verdict.num_seeds}"
    if verdict.mean is None or verdict.step_time_s is None:
        return [seeds, *["-"] * 7]
    values = [value_text(verdict, value) for value in (verdict.mean, min(verdict.values), max(verdict.values))]
    reached = verdict.steps_to_target
    steps = f"{round(sum(reached) / len(reached))} steps" if len(reached) == len(verdict.values) else f"{len(reached)} seeds"
    wire = "-" if verdict.wire_bytes_per_step is None else f"{verdict.wire_bytes_per_step / 1e6:.2f}"
    curve = "-" if verdict.curve_within_noise is None else "{} of {}".format(*verdict.curve_within_noise)
    return [seeds, *values, steps, f"{verdict.step_time_s * 1e3:.2f}", wire, curve]


def _line(run: TrainingRun) -> str:
    if run.status == "ok":
        last = run.curve[-1]
        level = f"accuracy {last.test_accuracy:.1%}" if last.test_accuracy is not None else f"loss {last.test_loss:.3f}"
        return f"{_name(run.case)}: {level}, {run.train_time_s:.1f} s"
    return f"{_name(run.case)}: {run.status}: {run.reason}"


def _name(case: BenchCase) -> str:
    return f"{case.label()} seed {case.seed}"


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(","))
    if "" in names:
        raise UsageError(f"{option} {text!r} has an empty entry; give one value or several with single commas between")
    return names


def _number(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not one whole number, which is what --quality takes; give for example 64") from None


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
