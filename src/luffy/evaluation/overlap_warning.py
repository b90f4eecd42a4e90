"""A warning, loud, where a model is measured on what it was trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from luffy.data.overlap import OverlapIndex
from luffy.evaluation.benchmarks import Benchmark
from luffy.types import Problem

SHOWN = 3


def describe_overlap(benchmarks: Sequence[Benchmark], trained_on: Iterable[Problem], what: str) -> list[str]:
    """A sentence for each benchmark that shares problems with the training data `what`.

    The same prompt, or 13 words in a row (see `luffy.data.overlap`); prompts of few words must be the same to the
    character, since chains of arithmetic differ in nothing but digits and signs.
    """
    trained_on = list(trained_on)
    lines = []
    for benchmark in benchmarks:
        texts = {str(problem.prompt): problem.id for problem in benchmark.problems}
        index = OverlapIndex({benchmark.name: (one for one in benchmark.problems if _has_words(one))})
        found: dict[str, str] = {}  # problem of the benchmark -> training problem
        for number, problem in enumerate(trained_on, start=1):
            same = texts.get(str(problem.prompt))
            overlap = index.find(problem, number) if same is None and _has_words(problem) else None
            name = same or (overlap.problem if overlap else None)
            if name is not None:
                found.setdefault(name, problem.id)
        if found:
            pairs = ", ".join(f"{a!r} ({b!r} there)" for a, b in itertools.islice(found.items(), SHOWN))
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            lines.append(
                f"{benchmark.name}: {len(found)} of its {len(benchmark.problems)} problems overlap with the training "
                f"data {what}: {pairs}{more}. Its accuracy says little about new problems."
            )
    return lines


def _has_words(problem: Problem) -> bool:
    text = problem.prompt if isinstance(problem.prompt, str) else " ".join(one["content"] for one in problem.prompt)
    return text.count(" ") >= 4
