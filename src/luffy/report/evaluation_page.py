"""The page about evaluated models: table, paired tests, and what the models said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from luffy.config import Config
from luffy.evaluation.compare import ModelsComparison
from luffy.evaluation.metrics import BenchmarkResult
from luffy.evaluation.models import EvalResult
from luffy.evaluation.protocol import sampling_of
from luffy.evaluation.statistics import Interval
from luffy.files import write_whole
from luffy.report.page import resource

SHOWN_PROBLEMS, SHOWN_SAMPLES, SHOWN_CHARACTERS = 100, 4, 6000  # on the page; the Parquet files have everything


def write_evaluation(results: Sequence[EvalResult], comparison: ModelsComparison, config: Config, output: Path) -> Path:
    """Write `evaluation.json` and `report.html` into `output`; return the page's path. Raises RunError if it cannot."""
    values = {"models": [one.to_json() for one in results], "comparison": comparison.to_json()}
    write_whole(output / "evaluation.json", json.dumps(values, indent=2) + "\n")
    return write_whole(output / "report.html", render_evaluation(results, comparison, config))


def render_evaluation(results: Sequence[EvalResult], comparison: ModelsComparison, config: Config) -> str:
    """The HTML. Everything a model wrote is escaped, and the page runs no script at all."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(resource), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    sampling = sampling_of(config)
    return environment.get_template("evaluation.html").render(
        title=" and ".join(comparison.rows) if len(comparison.rows) < 3 else f"{len(comparison.rows)} models",
        style=Markup(resource("style.css")),
        facts={
            "Temperature": sampling.temperature or "0 (greedy)",
            "Top-p": sampling.top_p,
            "Longest completion": f"{sampling.max_tokens} tokens",
            "Prompt template": config.data.template,
            "Engine": config.evaluation.engine,
        },
        columns=comparison.columns,
        rows={model: [_cell(cell) for cell in cells.values()] for model, cells in comparison.rows.items()},
        against=comparison.against,
        tests=[
            (
                test.model,
                test.benchmark,
                f"{100 * test.difference.value:+.1f}",
                f"{100 * test.difference.low:+.1f} to {100 * test.difference.high:+.1f}",
                f"{test.p_value:.3g}",
            )
            for test in comparison.tests
        ],
        sets=[
            {"model": one.model, "name": name, "metrics": _metrics(result), "problems": _problems(result)}
            for one in results
            for name, result in one.results.items()
        ],
        limits=(SHOWN_PROBLEMS, SHOWN_SAMPLES),
    )


def _cell(cell: Interval | float) -> tuple[str, str]:
    if isinstance(cell, Interval):
        return f"{100 * cell.value:.1f}", f"{100 * cell.low:.1f}-{100 * cell.high:.1f}"
    return f"{100 * cell:.1f}", ""


def _metrics(result: BenchmarkResult) -> list[tuple[str, str]]:
    shown = []
    for name, value in result.metrics().items():
        if isinstance(value, dict):
            text = f"{100 * value['value']:.1f} % ({100 * value['low']:.1f}-{100 * value['high']:.1f})"
        elif name in ("completion/length", "verifier/failures"):
            text = f"{value:.0f}"
        else:
            text = f"{100 * value:.1f} %"
        shown.append((name, text))
    return shown


def _problems(result: BenchmarkResult) -> list[dict[str, Any]]:
    """Problems as shown, those with a wrong sample first."""
    order = sorted(result.generations, key=lambda record: all(sample["correct"] for sample in record["samples"]))
    return [
        {
            "id": record["id"],
            "prompt": _prompt(record["prompt"]),
            "answer": record["answer"],
            "right": sum(sample["correct"] for sample in record["samples"]),
            "samples": [_sample(sample) for sample in record["samples"][:SHOWN_SAMPLES]],
            "count": len(record["samples"]),
        }
        for record in order[:SHOWN_PROBLEMS]
    ]


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    text = sample["text"]
    if len(text) > SHOWN_CHARACTERS:
        half = SHOWN_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - SHOWN_CHARACTERS} characters ...]\n{text[-half:]}"
    if sample["failure"]:
        why = f"verifier: {sample['failure']}"
    elif not sample["finished"]:
        why = "cut off by the length limit"
    elif sample["extracted"] is None:
        why = "no answer found"
    else:
        why = f"answer {sample['extracted']}"
    return {"text": text, "correct": sample["correct"], "why": why, "tokens": sample["tokens"]}


def _prompt(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{one['role']}: {one['content']}" for one in prompt)
