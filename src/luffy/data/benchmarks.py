"""Name a benchmark: a set of the built-in task or a JSONL file, with `@k` for k samples a problem.

miniature/hard    miniature/longer@8    my_problems.jsonl@4
"""

from __future__ import annotations

import re
from pathlib import Path

from luffy.config import MINIATURE, nearest
from luffy.data import miniature
from luffy.data.load import load_problems
from luffy.errors import ConfigError
from luffy.types import Problem

_SAMPLES = re.compile(r"(?P<source>.*)@(?P<samples>[0-9]{1,6})", re.DOTALL)


def benchmark_names() -> tuple[str, ...]:
    """The benchmarks that need no file."""
    return tuple(f"{MINIATURE}/{name}" for name in miniature.SET_NAMES)


def parse_benchmark(text: str) -> tuple[str, str, int]:
    """Split `NAME-or-FILE[@k]` into (source, display name, k); k is 1 unless given.

    Only a trailing `@` with digits counts, so paths may hold an `@`. The display name of a file is its stem.
    Raises ConfigError for no source and for k = 0.
    """
    match = _SAMPLES.fullmatch(text)
    source, samples = (match["source"], int(match["samples"])) if match else (text, 1)
    if not source.strip():
        raise ConfigError(f"benchmark {text!r}: expected a name or a file, with @k for k samples a problem.")
    if samples < 1:
        raise ConfigError(f"benchmark {text!r}: at least one sample a problem is needed, @1.")
    display_name = source if source in benchmark_names() else Path(source).stem
    return source, display_name, samples


def load_benchmark(source: str) -> list[Problem]:
    """The problems of a benchmark, without `@k`; rows of a file that are not problems are refused.

    Raises ConfigError for an unknown name, with the nearest known one, and DataError for a file that cannot be used.
    """
    known = benchmark_names()
    if source in known:
        return miniature.evaluation_problems(source.removeprefix(f"{MINIATURE}/"))
    looks_like_file = Path(source).suffix != "" or (not source.startswith(f"{MINIATURE}/") and "/" in source)
    if not looks_like_file and not Path(source).exists():
        raise ConfigError(
            f"unknown benchmark {source!r}.{nearest(source, known)} Known: {', '.join(known)}, or a JSONL file."
        )
    return load_problems(source).problems
