"""What runs cost: tokens, time, hours of the devices they had, and money where a price is stated.

A device hour is an hour of one GPU, one a process that trains, or of the whole machine where a run had no GPU. Runs
that shared a machine count as if each had it alone; GPUs of a server of rollouts are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luffy.comparison.collect import Comparison, Run, is_number
from luffy.report.palette import Look
from luffy.report.tables import Row, cell, count, distinct, duration, mean


def cost_fact(runs: Sequence[Run], price: float | None) -> str:
    """Device hours of all runs, and dollars. price: dollars a device and hour; none is known unless it is stated."""
    hours = [found for run in runs if (found := device_hours(run)) is not None]
    if not hours:
        return ""
    devices = {_device(run) for run in runs}
    device = devices.pop() if len(devices) == 1 else "device"
    text = f"{sum(hours):.3g} {device} hours"
    return text + (f", {sum(hours) * price:,.2f} dollars at {price:g} a {device} and hour" if price is not None else "")


def cost_table(
    comparison: Comparison, content: Mapping[str, Any], methods: Mapping[str, Look], price: float | None
) -> list[Row]:
    """What each method took, a run, and its accuracy at equal processed tokens."""
    equal = content["at_equal_tokens"]["evaluations"]
    rows = []
    for method, look in methods.items():
        runs = comparison.methods[method]
        totals = {key: mean([run.total(key) for run in runs]) for key in ("trained", "generated", "seconds")}
        hours = mean([device_hours(run) for run in runs])
        rows.append(
            {
                "title": look.title,
                "steps": distinct(sorted({run.steps for run in runs})),
                "trained": count(totals["trained"]),
                "generated": count(totals["generated"]),
                "time": duration(totals["seconds"]) if totals["seconds"] is not None else "",
                "hours": f"{hours:.3g}" if hours is not None else "",
                "dollars": f"{hours * price:,.2f}" if hours is not None and price is not None else "",
                "speed": count(_tokens_per_second(totals)),
                "equal": {name: cell({"avg@1": one}, False) for name, one in equal.get(method, {}).items()},
            }
        )
    return rows


def device_hours(run: Run) -> float | None:
    """Hours of the run times its GPUs, or of its machine; None where its time is not known."""
    seconds = run.total("seconds")
    return None if seconds is None else seconds / 3600 * _devices(run)


def _devices(run: Run) -> int:
    hardware = _hardware(run)
    processes = hardware.get("processes")
    return int(processes) if hardware.get("gpu") and is_number(processes) and processes >= 1 else 1


def _device(run: Run) -> str:
    """What an hour is one of; a run that does not say what it ran on has had some device."""
    hardware = _hardware(run)
    return "GPU" if hardware.get("gpu") else "machine" if hardware else "device"


def _hardware(run: Run) -> Mapping[str, Any]:
    found = run.environment.get("hardware")
    return found if isinstance(found, Mapping) else {}


def _tokens_per_second(totals: Mapping[str, float | None]) -> float | None:
    """Tokens trained and generated a second of the whole run, evaluations included."""
    seconds = totals["seconds"]
    return ((totals["trained"] or 0) + (totals["generated"] or 0)) / seconds if seconds else None
