"""The commands: they parse, call and print. Results go to stdout, progress and messages to stderr.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 stopped by Ctrl-C, 143 stopped by a request to
terminate (SIGTERM): a scheduler may start the same command again, and it goes on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.logging import RichHandler
from rich.padding import Padding
from rich.table import Column, Table
from typer.core import TyperGroup

from luffy.completion import complete_benchmark, complete_methods, complete_recipe, complete_setting
from luffy.config import MINIATURE, Config, completion_format, describe, flatten, load_config, nearest, parse_override
from luffy.errors import ConfigError, LuffyError
from luffy.redaction import printable, without_secrets


class _InterruptedError(Exception):
    """Ctrl-C in the middle of a command."""


class _Commands(TyperGroup):
    """The commands; typer ends them on Ctrl-C without a word, and `main` has one to say."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _InterruptedError from None


application = typer.Typer(
    name="luffy",
    cls=_Commands,
    help="Train language models to reason: reinforcement learning guided by off-policy traces (LUFFY) and its rivals.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_commands = typer.Typer(help="Look at problems and traces before training on them.", no_args_is_help=True)
application.add_typer(data_commands, name="data")

STOPPED, TERMINATED = 130, 143  # exit status of a run that was asked to stop, as shells have it for the two signals

messages = Console(stderr=True)
results = Console()

Recipe = Annotated[
    Path,
    typer.Argument(
        help="YAML file, or config.yaml of a run; `luffy config` lists its keys.", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Replace keys of the recipe: steps=50 data.train=my.jsonl",
        autocompletion=complete_setting,
    ),
]
FromRecipe = Annotated[
    Path | None,
    typer.Option(help="Take model, columns, limits and verifier from this recipe.", autocompletion=complete_recipe),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Methods = Annotated[
    str, typer.Option(help="Comma-separated; `luffy methods` lists them.", autocompletion=complete_methods)
]


def main() -> None:
    """Run the command line; a user's mistake is a sentence on stderr, never a traceback."""
    _configure_logging()
    if not messages.is_terminal:
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars would fill a log with control characters
    try:
        application(prog_name="luffy")
    except LuffyError as error:
        if not _speaks():
            sys.exit(2 if isinstance(error, ConfigError) else 1)
        for line in without_secrets(str(error)).splitlines():
            messages.print(f"[bold red]error:[/] {_plain(line)}", soft_wrap=True, highlight=False)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except (KeyboardInterrupt, _InterruptedError):
        if _speaks():
            messages.print("interrupted; the same command goes on from the last checkpoint.")
        sys.exit(STOPPED)
    except Exception:
        _speaks()  # the traceback is what is said; the processes that lose this one need not say so
        raise


def _speaks() -> bool:
    """Whether this process is to say why it fails; of several that train together, the first to fail is."""
    if "LOCAL_RANK" not in os.environ:
        return True
    from luffy.training.world import first_to_fail

    return first_to_fail()


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
    _check_names(config)
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

        _print_json(asdict(summary))
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
        _check_names(job.config)
    try:
        with ComparisonProgress(messages) as progress:
            run_comparison(plan, parallel=jobs, on_poll=progress.on_poll)
    finally:
        written = _write_comparison(output) if any(job.finished for job in plan.jobs) else None
    if written is None:
        return
    comparison = json.loads(written.read_text())
    if as_json:
        _print_json(comparison)
        return
    _print_comparison(comparison)
    results.print(f"Page: {(output / 'report.html').resolve()}", soft_wrap=True)


def _check_names(config: Config, *, training: bool = True) -> None:
    """Refuse names of nothing (verifier, benchmarks, training data) before the seconds that torch takes to import."""
    from luffy.data import check_benchmark_name, check_data_name, parse_benchmark
    from luffy.reward import resolve_verifier

    resolve_verifier(config.reward.kind)
    if training and config.data.train != MINIATURE:
        check_data_name(config.data.train)
    for name in config.evaluation.benchmarks:
        check_benchmark_name(parse_benchmark(name)[0], held_out=config.data.holdout > 0)


def _write_comparison(output: Path) -> Path:
    """Everything that is made of the runs: the numbers, the page, the picture. Returns the file of the numbers."""
    from luffy.comparison import write_comparison
    from luffy.report import write_picture, write_report

    written = write_comparison(output)
    write_report([output], output / "report.html")
    write_picture(output, output / "picture.png")
    return written


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
    _check_names(config, training=False)
    from luffy.evaluation import compare_models
    from luffy.evaluation import evaluate as run_evaluation
    from luffy.progress import EvaluationProgress
    from luffy.report import write_evaluation

    outcomes = []
    with EvaluationProgress(messages) as progress:
        for model in models:
            progress.on_model(model)
            outcome = run_evaluation(
                model,
                benchmark,
                config,
                output=None if discard else output,
                trained_on=trained_on,
                on_progress=progress.on_progress,
            )
            outcomes.append(outcome)
    comparison = compare_models(outcomes)
    page = None if discard else write_evaluation(outcomes, comparison, config, output)
    if as_json:
        _print_json({"models": [one.to_json() for one in outcomes], "comparison": comparison.to_json()})
        return
    for outcome in outcomes:
        results.print(_metrics_table(outcome))
    if len(outcomes) > 1:
        results.print(_models_table(comparison))
        results.print(_tests_table(comparison))
    if page:
        results.print(f"Page: {page}", soft_wrap=True, highlight=False)


def _evaluation_config(
    recipe: Path | None, benchmark: list[str], settings: list[str], limit: int | None, source: str | None
) -> Any:
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
        answered = "-" if one.extracted is None else _percent(one.extracted)
        about = (str(one.accuracy.n), f"{one.length:.0f}", _percent(one.truncated), answered)
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


@application.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or one comparison folder.")],
    output: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first folder.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve it on this machine, new as the run goes on.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --live; 0: a free one.")] = 8017,
) -> None:
    """Write one self-contained HTML page about runs or a comparison."""
    from luffy.report import write_report

    if live:
        _serve_report(folders, port)
        return
    page = write_report(folders, output or folders[0] / "report.html")
    results.print(str(page), soft_wrap=True)


def _serve_report(folders: list[Path], port: int) -> None:
    """Serve the page until Ctrl-C."""
    from contextlib import suppress
    from threading import Event

    from luffy.report import live_server

    with live_server(folders, port) as server:
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
        _print_json(values)
        return
    table = Table("key", "value" if recipe else "default", "meaning")
    for key, default, explanation in describe():
        shown = default if values[key] in (None, (), {}) else str(values[key])
        table.add_row(key, _plain(shown), _plain(explanation))
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
        _print_json({"ok": not missing, "findings": [asdict(one) for one in findings]})
    else:
        results.print(findings_table(findings))
        for one in missing:
            messages.print(f"[red]missing:[/] {_plain(f'{one.name}: {one.found}. {one.remedy}')}", highlight=False)
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
    price: Annotated[float | None, typer.Option(min=0, help="Dollars a GPU and hour.")] = None,
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

    from luffy.planning import find_device, find_remedies, make_plan, plan_tables, this_machine
    from luffy.planning.show import plan_lines

    if (gpus > 1 or nodes > 1) and gpu is None:
        raise ConfigError("--gpus and --nodes need --gpu NAME: of which device?")
    if measure:
        from luffy.planning.measure import measure_machine

        measured = measure_machine(rates)
        messages.print(_plain(measured), soft_wrap=True, highlight=False)
    if recipe is None:
        if not measure:
            raise ConfigError("RECIPE is missing: for example `luffy plan recipes/miniature.yaml`.")
        return
    device = this_machine(rates) if gpu is None else find_device(gpu)
    device = replace(device, utilisation=utilisation) if utilisation else device
    made = make_plan(
        load_config(recipe, overrides or []), device, gpus * nodes, gpu=gpu is not None, price=price,
        mean_tokens=mean_tokens,
    )  # fmt: skip
    remedy = None if made.ok else find_remedies(made)
    if as_json:
        _print_json(made.to_json() | {"remedy": list(remedy.settings) if remedy else None})
    else:
        for table in plan_tables(made):
            results.print(table)
        for line in plan_lines(made):
            results.print(_plain(line), soft_wrap=True, highlight=False)
        if not made.ok:
            change = f"it does with {' '.join(remedy.settings)}" if remedy else "no setting that is known here helps"
            results.print(_plain(f"It does not fit; {change}."), soft_wrap=True, highlight=False)
    raise typer.Exit(0 if made.ok else 1)


@data_commands.command("prepare")
def prepare_data(
    name: Annotated[str, typer.Argument(help="A public set, `miniature`, or `reasoning-gym:TASK`.")],
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of a task or the miniature: size=500 seed=1")
    ] = None,
    files: Annotated[
        list[str] | None, typer.Option("--from", help="Files or a folder of the set, in place of the hub.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The JSONL file; default: NAME.jsonl here.")] = None,
    split: Annotated[str, typer.Option(help="Split of the set on the hub.")] = "train",
    model: Annotated[str | None, typer.Option(help="Count tokens by this model's tokenizer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest trace; default: the set's own.")] = None,
    keep: Annotated[str, typer.Option(help="Which of a problem's traces: first, shortest or all.")] = "first",
    kind: Annotated[str | None, typer.Option(help="Verifier of the traces, or none; default: the set's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N problems.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Verifier processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Turn a public set into problems with traces: gsm8k, openr1-math (-easy, -hard), math, numina, or a made task.

    [dim]luffy data prepare gsm8k
    luffy data prepare gsm8k --from train.jsonl --out gsm8k.jsonl
    luffy data prepare openr1-math --model Qwen/Qwen2.5-Math-7B
    luffy data prepare reasoning-gym:chain_sum size=2000 min_terms=3 max_terms=6 --out sums.jsonl[/]
    """
    from luffy.data import prepare_public
    from luffy.progress import RowsProgress

    if keep not in ("first", "shortest", "all"):
        known = ("first", "shortest", "all")
        raise ConfigError(f"--keep: expected first, shortest or all, got {keep!r}.{nearest(keep, known)}")
    with RowsProgress(messages, f"preparing {name}") as progress:
        prepared = prepare_public(
            name,
            out or Path(f"{name.replace(':', '-')}.jsonl"),
            files=files or (),
            parameters=dict(map(parse_override, parameters or ())),
            split=split,
            tokenizer=_tokenizer(model) if model else None,
            max_tokens=max_tokens,
            keep=keep,  # type: ignore[arg-type]
            kind=kind,
            limit=limit,
            workers=workers,
            on_progress=progress.on_rows,
        )
    if as_json:
        _print_json(prepared.to_json())
        return
    for line in prepared.lines():
        results.print(_plain(line), soft_wrap=True, highlight=False)


@data_commands.command("collect")
def collect_data(
    file: Annotated[str, typer.Argument(help="Problems, in any of the formats.")],
    endpoint: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server: http://localhost:8000/v1")],
    model: Annotated[str, typer.Option(help="The teacher, as the server calls it.")],
    out: Annotated[Path, typer.Option(help="The JSONL file; OUT.journal beside it keeps every answer.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers asked for, a problem.")] = 1,
    keep: Annotated[
        str, typer.Option(help="Verified answers to keep: first (and ask no more), shortest, all.")
    ] = "first",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    tokenizer: Annotated[
        str | None, typer.Option(help="Keep the teacher's log-probs where its tokens are those of this model.")
    ] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "OPENAI_API_KEY",
    as_json: AsJson = False,
) -> None:
    """Collect traces from a teacher behind any OpenAI-compatible server; keep those that verify. Killed, it goes on.

    [dim]luffy data collect q.jsonl --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-32B --out traces.jsonl
    luffy data collect q.csv --endpoint URL --model NAME --out t.jsonl --samples 4 --keep shortest reward.kind=math
    ... data.template=think rollout.max_tokens=8192 rollout.temperature=0.6[/]
    """
    from dataclasses import asdict

    from luffy.collection import Collector, TeacherSettings
    from luffy.data import load_training_problems
    from luffy.progress import CollectionProgress
    from luffy.reward import VerifierPool
    from luffy.rollout.endpoint import EndpointClient

    if keep not in (known := ("first", "shortest", "all")):
        raise ConfigError(f"--keep: expected first, shortest or all, got {keep!r}.{nearest(keep, known)}")
    config = load_config(None, [f"data.train={json.dumps(file)}", *(overrides or [])])
    source = load_training_problems(config.data)
    settings = TeacherSettings.of(model, samples, config, source.digest)
    student = _tokenizer(tokenizer) if tokenizer else None
    with (
        EndpointClient(
            endpoint, model, key_variable=key_variable, concurrency=concurrency, logprobs=student is not None
        ) as client,
        VerifierPool.of(config) as pool,
        CollectionProgress(messages) as progress,
    ):
        collector = Collector(source, client, settings, out, keep=keep, tokenizer=student)  # type: ignore[arg-type]
        report = collector.run(pool, progress.on_answer)
    if as_json:
        _print_json(asdict(report))
        return
    for line in report.lines(out):
        results.print(_plain(line), soft_wrap=True, highlight=False)


@data_commands.command("check")
def check_data(
    file: Annotated[str, typer.Argument(help="A file in any of the formats, a saved data set, or a hub name.")],
    overrides: Overrides = None,
    kind: Annotated[
        str | None, typer.Option(help="Verifier that the traces are graded by: exact, number, math.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Count lengths in tokens of this model.")] = None,
    recipe: FromRecipe = None,
    closing: Annotated[
        str | None, typer.Option(help="Text that every trace must contain: '</think>'; a recipe may ask for it, too.")
    ] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option("--benchmark", "-b", help="NAME or FILE that must not share problems with FILE.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write the good part here as JSONL, the rest beside it as *-left-out.jsonl.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a data file: broken rows, wrong traces, duplicates, overlap, lengths. Exit status 1 if something is wrong.

    [dim]luffy data check problems.jsonl --kind number --model Qwen/Qwen2.5-0.5B-Instruct rollout.max_tokens=8192
    luffy data check sheet.csv data.columns.prompt=question data.columns.answer=gold --kind math --fix clean.jsonl
    luffy data check train.jsonl --kind math --closing '</think>' --benchmark test.parquet[/]
    """
    given = [f"data.train={json.dumps(file)}", *(overrides or []), *([f"reward.kind={kind}"] if kind else [])]
    config = load_config(recipe, given)
    from luffy.data import check_file, load_benchmark, parse_benchmark
    from luffy.progress import RowsProgress

    data = config.data
    names = [parse_benchmark(name) for name in benchmark or ()]
    with RowsProgress(messages, "checking") as progress:
        checked = check_file(
            file,
            kind=config.reward.kind,
            tokenizer=_tokenizer(model or config.model) if model or recipe else None,
            template=data.template,
            max_prompt_tokens=data.max_prompt_tokens if "max_prompt_tokens" in data.model_fields_set else None,
            max_completion_tokens=config.rollout.max_tokens
            if "max_tokens" in config.rollout.model_fields_set
            else None,
            closing=closing or _closing(config),
            benchmarks={
                shown: load_benchmark(source, place=config.evaluation.source).problems for source, shown, _ in names
            },
            columns=data.columns,
            subset=data.subset,
            split=data.split,
            workers=config.reward.workers,
            deadline=config.reward.deadline,
            on_progress=progress.on_rows,
        )
    if as_json:
        _print_json(checked.to_json())
    else:
        for line in checked.lines():
            results.print(_plain(line), soft_wrap=True, highlight=False)
    if fix is None:
        raise typer.Exit(0 if checked.ok else 1)
    _write_fixed(checked, fix, data)


def _closing(config: Config) -> str | None:
    """The end marker that the prompt or the gate asks for."""
    asked = config.reward.format == "closed_thought" or config.data.template == "think"
    return config.data.thought_closing if asked else None


def _write_fixed(checked: Any, path: Path, data: Any) -> None:
    from luffy.data import left_out_path, write_fixed

    counts = write_fixed(checked, path, columns=data.columns, subset=data.subset, split=data.split)
    line = f"{path}: {counts['problems']} problems, {counts['traces']} traces."
    if counts["rows_left_out"] or counts["traces_left_out"]:
        what = f"{counts['rows_left_out']} rows and {counts['traces_left_out']} traces"
        line += f" {left_out_path(path)}: {what} that were left out, with reasons."
    messages.print(_plain(line), soft_wrap=True, highlight=False)


@data_commands.command("show")
def show_data(
    file: Annotated[str, typer.Argument(help="A file in any of the formats, a hub name, or `miniature`.")],
    overrides: Overrides = None,
    recipe: FromRecipe = None,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer and chat template are used.")] = None,
    template: Annotated[str | None, typer.Option(help="auto, chat, think, qwen_math, simple or none.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many problems.")] = 3,
) -> None:
    """Show problems as the model will see them: template applied, special tokens visible, trained part marked.

    [dim]luffy data show problems.jsonl --model Qwen/Qwen2.5-Math-1.5B --template think
    luffy data show sheet.csv --recipe my.yaml[/]
    """
    chosen = [f"data.template={template}"] if template else []
    config = load_config(recipe, [f"data.train={json.dumps(file)}", *(overrides or []), *chosen])
    from luffy.data import load_training_problems, show_problem

    source = load_training_problems(config.data)
    tokenizer = _tokenizer(model or config.model)
    for problem in source.problems[:count]:
        results.print(show_problem(problem, tokenizer, config.data.template, completion_format(config)))


def _tokenizer(model: str) -> Any:
    from luffy.policy import load_tokenizer

    return load_tokenizer(model)


def _print_summary(summary: Any) -> None:
    title = f"{summary.method}, seed {summary.seed}: {summary.status}"
    table = Table("set", "metric", "value", "95 % interval", title=title)
    for name, metrics in summary.evaluations.items():
        for metric, value in metrics.items():
            interval = f"{_percent(value['low'])} - {_percent(value['high'])}"
            table.add_row(name, metric, _percent(value["value"]), interval)
    if summary.evaluations:
        results.print(table)
    line = f"{summary.method}, seed {summary.seed}: {summary.steps} steps, {summary.seconds:.0f} s."
    where = f" Model: {summary.output}/model" if summary.status == "finished" else f" {summary.status.capitalize()}."
    results.print(_plain(line + where), soft_wrap=True, highlight=False)


def _print_comparison(comparison: dict[str, Any]) -> None:
    sets = list(dict.fromkeys(name for entry in comparison["methods"].values() for name in entry["evaluations"]))
    common = sets[0][: sets[0].find("/") + 1] if len({name.partition("/")[0] for name in sets}) == 1 else ""
    short = {name: name.removeprefix(common) for name in sets}
    title = f"{common.rstrip('/')} accuracy in %, with 95 % intervals over problems and seeds".strip()
    columns = [name.replace("_", " ") for name in short.values()]  # so that they may wrap
    table = Table("method", *columns, title=title, box=SIMPLE)
    rows = {"base": {"evaluations": comparison.get("base", {})}} | comparison["methods"]
    for name, entry in rows.items():
        cells = [_cell(entry["evaluations"].get(one)) for one in sets]
        seeds = f"[dim]{_counted(entry['seeds'], 'seed')}[/]" if "seeds" in entry else ""
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
    results.print(verdicts)
    for note in comparison["notes"]:
        results.print(_plain(note), highlight=False)


def _cell(metrics: dict[str, Any] | None) -> str:
    if not metrics:
        return "-"
    value = next(iter(metrics.values()))
    return f"{100 * value['value']:.1f}\n[dim]{100 * value['low']:.0f}-{100 * value['high']:.0f}[/]"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _plain(text: str) -> str:
    """Text of ours or the user's that must be taken neither for console markup nor for commands to the terminal."""
    from rich.markup import escape

    return escape(printable(text, keep="\n"))


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _configure_logging() -> None:
    handler = RichHandler(console=messages, show_time=False, show_path=False, markup=False)
    handler.addFilter(_mask_secrets)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("luffy").setLevel(logging.INFO)


def _mask_secrets(record: logging.LogRecord) -> bool:
    """Messages of libraries, too, may hold a key that they were given, or text of a file."""
    record.msg, record.args = printable(without_secrets(record.getMessage()), keep="\n"), None
    return True
