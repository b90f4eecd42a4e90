"""What the benchmarks share: repeated timing as ratios within one run, a table, a JSON file."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
NO_UNITS = "this processor has no bfloat16 units (avx512_bf16, amx_bf16)"


def seconds(*actions: Callable[[], object], repeats: int = 7) -> list[list[float]]:
    """Time the actions in turn, `repeats` times after one warm-up each. Returns seconds [actions][repeats]."""
    times: list[list[float]] = [[] for _ in actions]
    for repeat in range(repeats + 1):
        for action, measured in zip(actions, times, strict=True):
            started = time.perf_counter()
            action()
            if repeat:
                measured.append(time.perf_counter() - started)
    return times


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median, least and largest ratio of measurements taken side by side."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def outcome(
    what: str, against: str, ours: float | dict[str, float] | None, goal: str, *, note: str = ""
) -> dict[str, Any]:
    """A row of the table of goals.

    ours: a number, or a `ratio`; None: not measured, and `note` says why. goal: `>= 3` or `<= 3 %`; with `%` ours is
    still a fraction.
    """
    sign, number, *unit = goal.split()
    if ours is None:
        verdict = "not measured"
    else:
        value = (ours["median"] if isinstance(ours, dict) else ours) * (100 if unit else 1)
        verdict = "reached" if (value >= float(number) if sign == ">=" else value <= float(number)) else "missed"
    return {"what": what, "against": against, "ours": ours, "goal": goal, "verdict": verdict, "note": note}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table(*rows[0], title=name)
    for row in rows:
        table.add_row(*(shown(value, "%" in str(row.get("goal"))) for value in row.values()))
    Console(width=160).print(table)


def one_more_run(value: float, low: float, high: float, runs: int) -> tuple[float, float]:
    """The ends between which one more run is expected, from the mean of so many and the ends of its t interval.

    One more draw varies sqrt(runs + 1) times as much as their mean.
    """
    half = (high - low) / 2 * (runs + 1) ** 0.5
    return value - half, value + half


def report(name: str, rows: Sequence[dict[str, Any]], **measured: Any) -> None:
    """Print the rows as a table and write them, with the machine, to results/NAME.json.

    measured: what the rows were made from, for the file alone.
    """
    show(name, rows)
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": machine, "rows": list(rows)} | measured, indent=2) + "\n"
    )


def replace(path: Path, name: str, text: str) -> None:
    """Put text between the markers of that name, where the file has them."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    path.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", path.read_text()))


def processor() -> str:
    """Its name, as far as the system says it."""
    names = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    return next(names, platform.machine())


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in units made for it."""
    flags = " ".join(line for line in _cpuinfo() if line.startswith(("flags", "Features"))).split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def shown(value: Any, percent: bool = False) -> str:
    """A measurement as text; percent: fractions as percentages."""
    if isinstance(value, dict):
        median, low, high = (_number(value[name], percent) for name in ("median", "low", "high"))
        return f"{median} [{low}, {high}]"
    if isinstance(value, float):
        return _number(value, percent)
    return "-" if value is None else str(value)


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.3g} %" if percent else f"{value:.3g}"
