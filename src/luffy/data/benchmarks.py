"""Name a benchmark: a public one, a set of the built-in task, or any data of one's own; `@k` for k samples a problem.

math500    aime24@32    miniature/hard    my_problems.jsonl@4    my/folder    OWNER/NAME:validation
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from luffy.config import MINIATURE, ColumnsConfig, nearest
from luffy.data import miniature
from luffy.data.load import load_problems
from luffy.data.public_benchmarks import PUBLIC_BENCHMARKS, FoundProblems, load_public_benchmark
from luffy.data.readers import is_hub_name
from luffy.errors import ConfigError
from luffy.types import Problem

HOLDOUT = "holdout"  # the problems that `data.holdout` keeps out of training

_SAMPLES = re.compile(r"(?P<source>.*)@(?P<samples>[0-9]{1,6})", re.DOTALL)


def benchmark_names() -> tuple[str, ...]:
    """The benchmarks that need no file."""
    return (*PUBLIC_BENCHMARKS, *(f"{MINIATURE}/{name}" for name in miniature.SET_NAMES))


def parse_benchmark(text: str) -> tuple[str, str, int]:
    """Split `NAME-or-DATA[@k]` into (source, display name, k); k is 1 unless given.

    Only a trailing `@` with digits counts, so paths may hold an `@`. The display name of a file is its stem.
    Raises ConfigError for no source and for k = 0.
    """
    match = _SAMPLES.fullmatch(text)
    source, samples = (match["source"], int(match["samples"])) if match else (text, 1)
    if not source.strip():
        raise ConfigError(f"benchmark {text!r}: expected a name or a file, with @k for k samples a problem.")
    if samples < 1:
        raise ConfigError(f"benchmark {text!r}: at least one sample a problem is needed, @1.")
    display_name = source if source in benchmark_names() else Path(source).stem.replace(":", "-")
    return source, display_name, samples


def load_benchmark(
    source: str,
    *,
    place: str | None = None,
    columns: ColumnsConfig | None = None,
    held_out: Mapping[str, list[Problem]] | None = None,
) -> FoundProblems:
    """The problems of a benchmark, without `@k`, and how they are graded; rows that are no problems are refused.

    place: where public benchmarks are, in place of the hub. columns: which column holds what in data of one's own.
    held_out: problems that stand for names. Raises ConfigError for an unknown name, with the nearest known one, and
    DataError for data that cannot be used.
    """
    if held_out and source in held_out:
        return FoundProblems(held_out[source])
    if source in PUBLIC_BENCHMARKS:
        return load_public_benchmark(source, place)
    check_benchmark_name(source)
    if source in benchmark_names():
        return FoundProblems(miniature.evaluation_problems(source.removeprefix(f"{MINIATURE}/")))
    data, _, split = source.rpartition(":")
    if data and is_hub_name(data):
        return FoundProblems(load_problems(data, columns=columns, split=split).problems)
    split = "test" if is_hub_name(source) else "train"
    return FoundProblems(load_problems(source, columns=columns, split=split).problems)


def check_benchmark_name(source: str, *, held_out: bool = False) -> None:
    """Refuse a benchmark, without `@k`, that is neither a known name nor looks like data; reads nothing.

    held_out: whether problems are kept out of training. Raises ConfigError with the nearest known name.
    """
    known = (*benchmark_names(), *([HOLDOUT] if held_out else []))
    looks_like_data = Path(source).suffix != "" or (not source.startswith(f"{MINIATURE}/") and "/" in source)
    if source in known or looks_like_data or Path(source).exists():
        return
    if source == HOLDOUT:
        raise ConfigError(
            f"benchmark {HOLDOUT!r}: no problems are held out. To keep 200 out of training: data.holdout=200"
        )
    raise ConfigError(
        f"unknown benchmark {source!r}.{nearest(source, known)} Known: {', '.join(known)}, or a file of problems."
    )
