"""Benchmarks as an evaluation takes them: by name, with their problems, samples and verifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luffy.config import Config
from luffy.data import load_benchmark, parse_benchmark
from luffy.errors import ConfigError
from luffy.types import Problem


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of problems and how many samples each gets."""

    name: str
    given: str  # as named in the configuration or on the command line, with its @k
    problems: Sequence[Problem]
    samples: int = 1
    kind: str | None = None  # of its verifier; None: the configured one


def load_benchmarks(
    names: Sequence[str], config: Config, held_out: Mapping[str, list[Problem]] | None = None
) -> list[Benchmark]:
    """Read benchmarks given as NAME-or-DATA[@k], at most `evaluation.limit` problems of each.

    held_out: problems that stand for names. Raises ConfigError for an unknown name and for two that results could not
    tell apart, DataError for bad data.
    """
    benchmarks: dict[str, Benchmark] = {}
    for name in names:
        source, display, samples = parse_benchmark(name)
        if display in benchmarks:
            other = benchmarks[display].given
            raise ConfigError(f"benchmarks {other!r} and {name!r} are both called {display!r} in the results.")
        settings = config.evaluation
        found = load_benchmark(source, place=settings.source, columns=config.data.columns, held_out=held_out)
        benchmarks[display] = Benchmark(display, name, found.problems[: settings.limit], samples, found.kind)
    return list(benchmarks.values())
