"""What the benchmarks share: repeated timing as ratios within one run, a table, a JSON file."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


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
    ratios = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    return {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}


def report(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table and write them, with the machine, to results/NAME.json."""
    table = Table(*rows[0], title=name)
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    Console(width=160).print(table)
    machine = {
        "processor": next(
            (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
        ),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=2) + "\n")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
