"""The same problems over the whole run: what the model answered to a few of each watched set, step by step.

Taken from the evaluations, where every problem comes again and again; during training a problem may come once. For
each method it is the first seed that has them, and the first sample of a problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luffy.comparison.collect import Comparison, Run
from luffy.files import read_lines
from luffy.report.embed import embedded_size
from luffy.report.groups import prompt_text, shortened, thinned

PROBLEMS = 24  # of a set
STEPS = 12  # at most, evenly
SETS = 3
LONGEST_TEXT = 1_200  # characters
BYTES = 400_000  # of all texts of a page; with more methods or longer texts there are fewer problems


def histories(comparison: Comparison) -> list[dict[str, Any]]:
    """For each watched set `{"set", "problems": [{"id", "prompt", "answer", "methods": {NAME: [answer, ...]}}]}`.

    An answer is `{"s": step, "right": share of right samples, "text": the first sample}`.
    """
    watched = [name for name in comparison.sets if any(len(run.of_set(name)) > 2 for run in comparison.runs)][:SETS]
    found = [(name, _of_set(comparison, name)) for name in watched]
    return [{"set": name, "problems": problems} for name, problems in found if problems]


def _of_set(comparison: Comparison, name: str) -> list[dict[str, Any]]:
    problems: dict[str, dict[str, Any]] = {}
    for method, runs in comparison.methods.items():
        run = next((run for run in runs if len(run.of_set(name)) > 1), None)  # it may have been stopped early
        for step, line in _lines(run, name) if run else ():
            identifier = str(line.get("id", ""))
            if identifier not in problems and len(problems) == PROBLEMS:
                continue
            problem = problems.setdefault(
                identifier,
                {
                    "id": identifier,
                    "prompt": shortened(prompt_text(line.get("prompt", "")), LONGEST_TEXT),
                    "answer": shortened(str(line.get("answer", "")), LONGEST_TEXT),
                    "methods": {},
                },
            )
            problem["methods"].setdefault(method, []).append(_answer(step, line["samples"]))
    return _within_budget(list(problems.values()))


def _lines(run: Run, name: str) -> list[tuple[int, Mapping[str, Any]]]:
    lines: list[tuple[int, Mapping[str, Any]]] = []
    for evaluation in thinned(run.of_set(name), STEPS):
        path = run.folder / "evaluations" / f"step-{evaluation.step:06d}" / f"{name.replace('/', '-')}.jsonl"
        lines += [(evaluation.step, line) for line in read_lines(path) if line.get("samples")]
    return lines


def _answer(step: int, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    right = sum(bool(sample.get("correct")) for sample in samples) / len(samples)
    return {"s": step, "right": round(right, 3), "text": shortened(str(samples[0].get("text", "")), LONGEST_TEXT)}


def _within_budget(problems: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first problems, as many as the page has room for."""
    left = BYTES // SETS
    kept: list[dict[str, Any]] = []
    for problem in problems:
        left -= embedded_size(problem)
        if left < 0 and kept:
            break
        kept.append(problem)
    return kept
