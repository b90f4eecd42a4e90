"""`luffy report`, `config`, `methods`, `doctor`, `plan`: they look and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table

from luffy.cli.console import messages, plain, print_json, results
from luffy.cli.options import AsJson, Overrides, Price
from luffy.cli.root import application
from luffy.completion import complete_recipe
from luffy.config import describe, flatten, load_config
from luffy.errors import ConfigError


@application.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or one comparison folder.")],
    output: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first folder.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve it on this machine, new as the run goes on.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --live; 0: a free one.")] = 8017,
    price: Price = None,
) -> None:
    """Write one self-contained HTML page about runs or a comparison."""
    from luffy.report import write_report

    if live:
        _serve_report(folders, port, price)
        return
    page = write_report(folders, output or folders[0] / "report.html", price=price)
    results.print(str(page), soft_wrap=True)


def _serve_report(folders: list[Path], port: int, price: float | None) -> None:
    """Serve the page until Ctrl-C."""
    from contextlib import suppress
    from threading import Event

    from luffy.report import live_server

    with live_server(folders, port, price=price) as server:
        results.print(f"http://127.0.0.1:{server.server_port}/", soft_wrap=True)
        messages.print("Serving on this machine only; Ctrl-C ends it, not the training.")
        with suppress(KeyboardInterrupt):
            Event().wait()


@application.command()
def config(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="Show the values of this recipe, not the defaults.", autocompletion=complete_recipe),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """List every key of a recipe with its value and what it means."""
    values = flatten(load_config(recipe, overrides or []))
    if as_json:
        print_json(values)
        return
    table = Table("key", "value" if recipe else "default", "meaning")
    for key, default, explanation in describe():
        shown = default if values[key] in (None, (), {}) else str(values[key])
        table.add_row(key, plain(shown), plain(explanation))
    results.print(table)


@application.command()
def methods() -> None:
    """List the methods and how they differ."""
    from luffy.algorithm.methods import METHODS

    for name, method in METHODS.items():
        shaping = method.shaping if method.sampled_shaping == "none" else f"{method.sampled_shaping} (own tokens)"
        choices = {
            "phases": " + ".join(method.phases),
            "traces": method.traces,
            "baseline": method.baseline,
            "shaping": shaping,
            "clip": "sampled tokens" if method.clip else "none",
        }
        results.print(f"[bold]{name}[/]  {method.summary}", highlight=False)
        results.print(Padding(" · ".join(f"{key}: {value}" for key, value in choices.items()), (0, 4)), highlight=False)
        results.print(Padding(f"[dim]{method.source}[/]", (0, 4)), highlight=False)


@application.command()
def doctor(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECIPE]...", help="Say what these need; it must be here.", autocompletion=complete_recipe
        ),
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Also ask whether the hub answers, over the network.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: what it can run, what is missing for what, and whether a small model answers.

    Exit status 1 if something is missing without which nothing runs, or a named RECIPE does not.

    [dim]luffy doctor
    luffy doctor recipes/gsm8k-qwen2.5-0.5b.yaml[/]
    """
    from dataclasses import asdict

    from luffy.doctor import examine, findings_table

    findings = list(examine(recipes or (), hub=hub))
    missing = [one for one in findings if one.state == "missing"]
    if as_json:
        print_json({"ok": not missing, "findings": [asdict(one) for one in findings]})
    else:
        results.print(findings_table(findings))
        for one in missing:
            messages.print(f"[red]missing:[/] {plain(f'{one.name}: {one.found}. {one.remedy}')}", highlight=False)
    raise typer.Exit(1 if missing else 0)


@application.command()
def plan(
    recipe: Annotated[
        Path | None, typer.Argument(help="YAML file, or config.yaml of a run.", autocompletion=complete_recipe)
    ] = None,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 1,
    gpu: Annotated[str | None, typer.Option(help="A100-80, H100, ...; without it: this machine.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    price: Price = None,
    mean_tokens: Annotated[float | None, typer.Option(min=1, help="Tokens of a completion on average.")] = None,
    utilisation: Annotated[float | None, typer.Option(min=0.01, max=1, help="Share of the peak in an update.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine's rates first; a minute.")] = False,
    rates: Annotated[Path | None, typer.Option(help="File of measured rates; default: in the user's cache.")] = None,
    as_json: AsJson = False,
) -> None:
    """Memory, time and cost of a recipe before anything is started; what to change if it does not fit.

    Exit status 0 if it fits, 1 if not.

    [dim]luffy plan recipes/miniature.yaml
    luffy plan recipes/paper/qwen2.5-math-7b.yaml --gpus 8 --gpu A100-80 --price 2[/]
    """
    from dataclasses import replace

    from luffy.planning import find_adapter, find_device, find_remedies, make_plan, plan_tables, this_machine
    from luffy.planning.show import plan_lines

    if (gpus > 1 or nodes > 1) and gpu is None:
        raise ConfigError("--gpus and --nodes need --gpu NAME: of which device?")
    if measure:
        from luffy.planning.measure import measure_machine

        measured = measure_machine(rates)
        messages.print(plain(measured), soft_wrap=True, highlight=False)
    if recipe is None:
        if not measure:
            raise ConfigError("RECIPE is missing: for example `luffy plan recipes/miniature.yaml`.")
        return
    device = this_machine(rates) if gpu is None else find_device(gpu)
    device = replace(device, utilisation=utilisation) if utilisation else device
    made = make_plan(load_config(recipe, overrides or []), device, gpus * nodes, price=price, mean_tokens=mean_tokens)
    remedy = None if made.ok else find_remedies(made)
    adapter = None if made.ok else find_adapter(made)
    if as_json:
        changes = {"remedy": remedy, "adapter": adapter}
        print_json(made.to_json() | {name: list(one.settings) if one else None for name, one in changes.items()})
    else:
        for table in plan_tables(made):
            results.print(table)
        for line in plan_lines(made):
            results.print(plain(line), soft_wrap=True, highlight=False)
        if not made.ok:
            change = f"it does with {' '.join(remedy.settings)}" if remedy else "no setting that is known here helps"
            results.print(plain(f"It does not fit; {change}."), soft_wrap=True, highlight=False)
        if adapter:
            change = f"An adapter in place of all weights, another training, fits with {' '.join(adapter.settings)}."
            results.print(plain(change), soft_wrap=True, highlight=False)
    raise typer.Exit(0 if made.ok else 1)
