"""Evaluation: benchmarks, sampling protocol, accuracy with intervals.

The statistics need no model; what needs one is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from luffy.evaluation.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from luffy.evaluation.protocol import (
        Benchmark,
        BenchmarkResult,
        EvalResult,
        evaluate,
        load_benchmarks,
        measure,
        read_benchmarks,
    )

__all__ = [
    "Benchmark",
    "BenchmarkResult",
    "EvalResult",
    "Interval",
    "evaluate",
    "load_benchmarks",
    "mean_interval",
    "measure",
    "read_benchmarks",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from luffy.evaluation import protocol

        return getattr(protocol, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
