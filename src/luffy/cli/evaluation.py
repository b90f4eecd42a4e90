"""`luffy eval`: models on benchmarks, as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Column, Table

from luffy.cli.console import messages, percent, print_json, results
from luffy.cli.options import AsJson, check_names
from luffy.cli.root import application
from luffy.completion import complete_benchmark, complete_recipe, complete_setting
from luffy.config import Config, load_config
from luffy.errors import ConfigError


@application.command("eval")
def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Model folders or hub names.", show_default=False)
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            "-b",
            help="NAME or DATA, with @k for k samples a problem.",
            autocompletion=complete_benchmark,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N problems of each.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Recipe, or config.yaml of a run: prompts, verifier, lengths as there.", autocompletion=complete_recipe
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE of the configuration, e.g. reward.kind=math", autocompletion=complete_setting
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="File or folder to take public benchmarks from, in place of the hub.")
    ] = None,
    trained_on: Annotated[
        str | None, typer.Option(help="Training data of the models: warns of problems that are in both.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Samples, table and page go here.")] = Path("runs/eval"),
    discard: Annotated[bool, typer.Option("--discard", help="Keep nothing.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the public benchmarks and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate models on benchmarks: avg@k, pass@k, maj@k with intervals, side by side. Killed, it goes on.

    [dim]luffy eval miniature --benchmark miniature/hard --benchmark miniature/short
    luffy eval runs/mine/model -b math500 -b aime24@32 --set data.template=think --set rollout.max_tokens=8192
    luffy eval Qwen/Qwen2.5-Math-1.5B runs/mine/model -b test.csv@8 --recipe runs/mine/config.yaml[/]

    [dim]Several samples (@k) are drawn at evaluation.temperature=0.6 unless set; one is greedy.[/]
    """
    if listed or not benchmark:
        _print_benchmarks()
        raise typer.Exit(0 if listed else 2)
    if not models:
        raise ConfigError("MODEL is missing: a model folder or hub name, for example `luffy eval runs/mine/model ...`.")
    config = _evaluation_config(recipe, benchmark, settings or [], limit, source)
    check_names(config, training=False)
    _check_models(models, config)
    from luffy.evaluation import compare_models
    from luffy.report import write_evaluation

    outcomes = _evaluate_each(models, benchmark, config, None if discard else output, trained_on)
    comparison = compare_models(outcomes)
    page = None if discard else write_evaluation(outcomes, comparison, config, output)
    if as_json:
        print_json({"models": [one.to_json() for one in outcomes], "comparison": comparison.to_json()})
    else:
        _print_outcomes(outcomes, comparison, page)


def _check_models(models: list[str], config: Config) -> None:
    """Refuse all folders that are no models before the first is loaded; a server knows its own by other names."""
    from luffy.model_folder import check_model

    if config.evaluation.engine != "endpoint":
        for model in models:
            check_model(model, config.policy)


def _evaluate_each(
    models: list[str], benchmark: list[str], config: Config, output: Path | None, trained_on: str | None
) -> list[Any]:
    from luffy.evaluation import evaluate as run_evaluation
    from luffy.progress import EvaluationProgress

    outcomes = []
    with EvaluationProgress(messages) as progress:
        for model in models:
            progress.on_model(model)
            outcome = run_evaluation(
                model, benchmark, config, output=output, trained_on=trained_on, on_progress=progress.on_progress
            )
            outcomes.append(outcome)
    return outcomes


def _print_outcomes(outcomes: list[Any], comparison: Any, page: Path | None) -> None:
    for outcome in outcomes:
        results.print(_metrics_table(outcome))
    if len(outcomes) > 1:
        results.print(_models_table(comparison))
        results.print(_tests_table(comparison))
    if page:
        results.print(f"Page: {page}", soft_wrap=True, highlight=False)


def _evaluation_config(
    recipe: Path | None, benchmark: list[str], settings: list[str], limit: int | None, source: str | None
) -> Config:
    sampled = any(name.rpartition("@")[2].isdecimal() and not name.endswith("@1") for name in benchmark if "@" in name)
    greedy = recipe is None or load_config(recipe).evaluation.temperature == 0
    given = [
        *(["evaluation.temperature=0.6"] if sampled and greedy else []),  # the paper's
        f"evaluation.benchmarks={json.dumps(benchmark)}",
        "evaluation.watch=[]",
        *([f"evaluation.limit={limit}"] if limit else []),
        *([f"evaluation.source={json.dumps(source)}"] if source else []),
    ]
    return load_config(recipe, [*given, *settings])


def _print_benchmarks() -> None:
    from luffy.data import PUBLIC_BENCHMARKS, benchmark_names

    table = Table("benchmark", "what", "verifier", "on the hub")
    for name, one in PUBLIC_BENCHMARKS.items():
        table.add_row(name, one.summary, one.kind, f"{one.hub}, {one.split}")
    results.print(table)
    others = [name for name in benchmark_names() if name not in PUBLIC_BENCHMARKS]
    results.print(f"Of the built-in task: {', '.join(others)}.", soft_wrap=True, highlight=False)
    results.print("Or a file of problems, a saved data set, OWNER/NAME:SPLIT on the hub; each with @k: aime24@32.")


def _metrics_table(outcome: Any) -> Table:
    title = f"{outcome.model}, in % with 95 % intervals over problems"
    table = Table(
        Column("set", no_wrap=True),
        "metric",
        "",
        "",
        "problems",
        "length",
        "cut off",
        "answered",
        title=title,
        box=SIMPLE,
    )
    for name, one in outcome.results.items():
        intervals = {f"avg@{one.samples}": one.accuracy}
        intervals |= {f"pass@{k}": interval for k, interval in one.passed.items() if k > 1}
        intervals |= {f"maj@{one.samples}": one.majority} if one.majority else {}
        answered = "-" if one.extracted is None else percent(one.extracted)
        about = (str(one.accuracy.n), f"{one.length:.0f}", percent(one.truncated), answered)
        for place, (metric, value) in enumerate(intervals.items()):
            ends = f"[dim]{100 * value.low:.1f}-{100 * value.high:.1f}[/]"
            first = place == 0
            table.add_row(name if first else "", metric, f"{100 * value.value:.1f}", ends, *(about if first else ()))
    return table


def _models_table(comparison: Any) -> Table:
    table = Table("model", *comparison.columns, title="accuracy in %", box=SIMPLE)
    for model, cells in comparison.rows.items():
        table.add_row(model, *map(_interval_cell, cells.values()))
    return table


def _interval_cell(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{100 * cell:.1f}"
    return f"{100 * cell.value:.1f}\n[dim]{100 * cell.low:.0f}-{100 * cell.high:.0f}[/]"


def _tests_table(comparison: Any) -> Table:
    title = f"difference to {comparison.against} in points, over problems"
    table = Table("model", "set", "difference", "95 % interval", "p", title=title, box=SIMPLE)
    for test in comparison.tests:
        one = test.difference
        ends = f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
        table.add_row(test.model, test.benchmark, f"{100 * one.value:+.1f}", ends, f"{test.p_value:.3g}")
    return table
