"""Evaluation: benchmarks, sampling protocol, accuracy with intervals.

    evaluate("runs/mine/model", ["math500", "aime24@32"], config, output="runs/eval")

`benchmarks` reads them, `samplers` draw answers, `protocol` measures one, `metrics` and `statistics` say how sure it
is, `store` keeps the samples, `models` puts it together for a model, `compare` for several.
The statistics need no model; what needs one is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from luffy.evaluation.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from luffy.evaluation.benchmarks import Benchmark, load_benchmarks
    from luffy.evaluation.compare import ModelsComparison, compare_models
    from luffy.evaluation.metrics import BenchmarkResult
    from luffy.evaluation.models import EvalResult, evaluate
    from luffy.evaluation.overlap_warning import describe_overlap
    from luffy.evaluation.protocol import measure
    from luffy.evaluation.samplers import EngineSampler

_LATE = {
    "Benchmark": "benchmarks",
    "BenchmarkResult": "metrics",
    "EngineSampler": "samplers",
    "EvalResult": "models",
    "ModelsComparison": "compare",
    "compare_models": "compare",
    "describe_overlap": "overlap_warning",
    "evaluate": "models",
    "load_benchmarks": "benchmarks",
    "measure": "protocol",
}

__all__ = [
    "Benchmark",
    "BenchmarkResult",
    "EngineSampler",
    "EvalResult",
    "Interval",
    "ModelsComparison",
    "compare_models",
    "describe_overlap",
    "evaluate",
    "load_benchmarks",
    "mean_interval",
    "measure",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f"luffy.evaluation.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
