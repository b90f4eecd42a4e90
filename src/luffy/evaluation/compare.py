"""Several models side by side: the table in the paper's layout, and paired tests against the first model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luffy.evaluation.metrics import BenchmarkResult
from luffy.evaluation.models import EvalResult
from luffy.evaluation.statistics import Interval, paired_difference, paired_p_value

MATH = ("aime24", "aime25", "amc", "math500", "minerva", "olympiad")  # the paper's in-distribution sets, in its order
BEYOND = ("arc_c", "gpqa_diamond", "mmlu_pro")  # its out-of-distribution sets
AVERAGE, BEYOND_AVERAGE = "average", "average beyond"


@dataclass(frozen=True, slots=True)
class PairedTest:
    """One model against the first on one benchmark."""

    model: str
    benchmark: str
    difference: Interval  # of accuracy, over problems
    p_value: float  # of no difference, by sign flips over problems

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "model": self.model,
            "benchmark": self.benchmark,
            "difference": self.difference.to_json(),
            "p_value": self.p_value,
        }


@dataclass(frozen=True, slots=True)
class ModelsComparison:
    """Models (rows) by benchmarks (columns)."""

    columns: list[str]  # benchmarks and the averages after their groups
    rows: dict[str, dict[str, Interval | float]]  # [model][column]; averages have no interval
    against: str  # the first model
    tests: list[PairedTest]

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "columns": self.columns,
            "models": {
                model: {name: cell.to_json() if isinstance(cell, Interval) else cell for name, cell in cells.items()}
                for model, cells in self.rows.items()
            },
            "against": self.against,
            "tests": [test.to_json() for test in self.tests],
        }


def compare_models(results: Sequence[EvalResult]) -> ModelsComparison:
    """Put results on the same benchmarks side by side."""
    names = list(results[0].results)
    groups = [[name for name in group if name in names] for group in (MATH, BEYOND)]
    columns: list[str] = []
    for group, average in zip(groups, (AVERAGE, BEYOND_AVERAGE), strict=True):
        columns += [*group, *([average] if len(group) > 1 else [])]
    columns += [name for name in names if name not in columns]
    rows = {one.model: _row(one, columns, groups) for one in results}
    tests = [_test(other, results[0], name) for other in results[1:] for name in columns if name in results[0].results]
    return ModelsComparison(columns, rows, results[0].model, tests)


def _row(result: EvalResult, columns: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, Interval | float]:
    averages = {
        average: sum(result.results[name].accuracy.value for name in group) / len(group)
        for group, average in zip(groups, (AVERAGE, BEYOND_AVERAGE), strict=True)
        if group
    }
    return {name: result.results[name].accuracy if name in result.results else averages[name] for name in columns}


def _test(one: EvalResult, first: EvalResult, name: str) -> PairedTest:
    a, b = _shares(one.results[name]), _shares(first.results[name])
    return PairedTest(one.model, name, paired_difference([a], [b]), paired_p_value(a, b))


def _shares(result: BenchmarkResult) -> list[float]:
    """Share of right samples, by problem."""
    return [
        sum(sample["correct"] for sample in record["samples"]) / len(record["samples"]) for record in result.generations
    ]
