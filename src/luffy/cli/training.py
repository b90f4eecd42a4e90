"""`luffy train` and `luffy compare`."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from luffy.cli.console import counted, messages, percent, plain, print_json, results
from luffy.cli.options import AsJson, Methods, Overrides, Price, Recipe, check_names
from luffy.cli.root import STOPPED, TERMINATED, application
from luffy.config import Config, load_config, nearest
from luffy.errors import ConfigError


@application.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    as_json: AsJson = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes of this machine that train together.")] = None,
) -> None:
    """Train a model as a recipe says; go on by itself where an earlier start in the same folder stopped.

    [dim]luffy train recipes/miniature.yaml
    luffy train recipes/miniature.yaml method=on_policy steps=50 output=runs/mine
    luffy train my.yaml model=Qwen/Qwen2.5-0.5B-Instruct data.train=problems.jsonl
    luffy train my.yaml --processes 8[/]
    """
    given = [*(overrides or []), *([f"processes={processes}"] if processes else [])]
    config = load_config(recipe, given)
    check_names(config)
    rank = os.environ.get("RANK") if "LOCAL_RANK" in os.environ else None
    if rank is None and (config.processes or 1) > 1:
        from luffy.training.launch import launch

        raise typer.Exit(
            launch(["train", str(recipe), *given, *(["--json"] if as_json else [])], config.processes or 1)
        )
    if rank not in (None, "0"):
        _train_silently(config)
        return
    from luffy.progress import TrainingProgress
    from luffy.training import train as run_training

    with TrainingProgress(messages, config.method) as progress:
        summary = run_training(config, on_step=progress.on_step)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(summary))
    else:
        _print_summary(summary)
    if summary.status != "finished":
        from luffy.training.interrupt import TERMINATION

        raise typer.Exit(TERMINATED if summary.reason == TERMINATION else STOPPED)


def _train_silently(config: Config) -> None:
    """As a process that is not the first: what is to be said and written, the first one says and writes."""
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("luffy").setLevel(logging.ERROR)
    from luffy.training import train as run_training

    run_training(config)


@application.command()
def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    methods: Methods = "on_policy,luffy,mixed,sft,sft_rl,rl_sft",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N-1 of every method.")] = 3,
    output: Annotated[Path, typer.Option(help="The comparison's folder.")] = Path("runs/comparison"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 1,
    price: Price = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods: same base, same problems, same evaluations; a table, verdicts and a page.

    Each method runs with its own settings under `methods:` of the recipe. Killed and started again, it goes on.

    [dim]luffy compare recipes/miniature.yaml --methods luffy,on_policy,sft_rl --seeds 3 --jobs 2[/]
    """
    from luffy.algorithm.methods import METHODS

    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"--methods: unknown method {name!r}.{nearest(name, METHODS)}")
    from luffy.comparison.runner import plan_comparison, run_comparison
    from luffy.progress import ComparisonProgress

    plan = plan_comparison(recipe, names, range(seeds), output, overrides or [])
    for job in plan.jobs[: len(names)]:  # one of each method
        check_names(job.config)
    try:
        with ComparisonProgress(messages) as progress:
            run_comparison(plan, parallel=jobs, on_poll=progress.on_poll)
    finally:
        written = _write_comparison(output, price) if any(job.finished for job in plan.jobs) else None
    if written is None:
        return
    comparison = json.loads(written.read_text())
    if as_json:
        print_json(comparison)
        return
    _print_comparison(comparison)
    results.print(f"Page: {(output / 'report.html').resolve()}", soft_wrap=True)


def _write_comparison(output: Path, price: float | None) -> Path:
    """Everything that is made of the runs: the numbers, the page, the picture. Returns the file of the numbers."""
    from luffy.comparison import write_comparison
    from luffy.report import write_picture, write_report

    written = write_comparison(output)
    write_report([output], output / "report.html", price=price)
    write_picture(output, output / "picture.png")
    return written


def _print_summary(summary: Any) -> None:
    title = f"{summary.method}, seed {summary.seed}: {summary.status}"
    table = Table("set", "metric", "value", "95 % interval", title=title)
    for name, metrics in summary.evaluations.items():
        for metric, value in metrics.items():
            interval = f"{percent(value['low'])} - {percent(value['high'])}"
            table.add_row(name, metric, percent(value["value"]), interval)
    if summary.evaluations:
        results.print(table)
    line = f"{summary.method}, seed {summary.seed}: {summary.steps} steps, {summary.seconds:.0f} s."
    where = f" Model: {summary.output}/model" if summary.status == "finished" else f" {summary.status.capitalize()}."
    results.print(plain(line + where), soft_wrap=True, highlight=False)


def _print_comparison(comparison: dict[str, Any]) -> None:
    from luffy.report.tables import unjudged_claims

    sets = list(dict.fromkeys(name for entry in comparison["methods"].values() for name in entry["evaluations"]))
    common = sets[0][: sets[0].find("/") + 1] if len({name.partition("/")[0] for name in sets}) == 1 else ""
    short = {name: name.removeprefix(common) for name in sets}
    title = f"{common.rstrip('/')} accuracy in %, with 95 % intervals over problems and seeds".strip()
    columns = [name.replace("_", " ") for name in short.values()]  # so that they may wrap
    table = Table("method", *columns, title=title, box=SIMPLE)
    rows = {"base": {"evaluations": comparison.get("base", {})}} | comparison["methods"]
    for name, entry in rows.items():
        cells = [_cell(entry["evaluations"].get(one)) for one in sets]
        seeds = f"[dim]{counted(entry['seeds'], 'seed')}[/]" if "seeds" in entry else ""
        table.add_row(f"{name}\n{seeds}", *cells)
    results.print(table)
    verdicts = Table(
        "here", "claim (set)", "difference [95 % interval]", box=SIMPLE, title="the claims, as they came out here"
    )
    colours = {"holds": "green", "fails": "red", "undecided": "yellow"}
    for one in comparison["verdicts"]:
        interval = f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        claim = f"{one['claim']} ({short.get(one['set'], one['set'])})"
        verdicts.add_row(f"[{colours[one['verdict']]}]{one['verdict']}[/]", claim, interval)
    if comparison["verdicts"]:
        results.print(verdicts)
    for reason, claims in unjudged_claims(comparison["unjudged"]):
        results.print(plain(f"Not judged, since {reason}: {'; '.join(claims)}."), highlight=False)
    for note in comparison["notes"]:
        results.print(plain(note), highlight=False)


def _cell(metrics: dict[str, Any] | None) -> str:
    if not metrics:
        return "-"
    value = next(iter(metrics.values()))
    return f"{100 * value['value']:.1f}\n[dim]{100 * value['low']:.0f}-{100 * value['high']:.0f}[/]"
