"""`luffy data`: prepare, collect, check, show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from luffy.cli.console import messages, plain, print_json, results
from luffy.cli.options import AsJson, FromRecipe, Overrides
from luffy.cli.root import data_commands
from luffy.config import Config, completion_format, load_config, nearest, parse_override
from luffy.errors import ConfigError


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
        print_json(prepared.to_json())
        return
    for line in prepared.lines():
        results.print(plain(line), soft_wrap=True, highlight=False)


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
        print_json(asdict(report))
        return
    for line in report.lines(out):
        results.print(plain(line), soft_wrap=True, highlight=False)


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
        print_json(checked.to_json())
    else:
        for line in checked.lines():
            results.print(plain(line), soft_wrap=True, highlight=False)
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
    messages.print(plain(line), soft_wrap=True, highlight=False)


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
    from luffy.model_folder import local_model

    local_model(model)  # a folder that is not there is told at once
    from luffy.policy import load_tokenizer

    return load_tokenizer(model)
