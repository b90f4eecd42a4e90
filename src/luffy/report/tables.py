"""What the page says in words and numbers: facts, verdicts, tables. Plain values for the template, nothing escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luffy.comparison.collect import BASE, Comparison, Run, is_number, summarise
from luffy.report.palette import Look

Row = dict[str, Any]

SIGNS = {"holds": "✓", "fails": "✗", "undecided": "?"}
POINTS = frozenset({"accuracy", "speed"})  # measures that are shares; the others are shown as they are


def facts(comparison: Comparison, cost: str) -> list[tuple[str, str]]:
    """What was trained on what, where, for how long, and at what cost, which is given."""
    runs = comparison.runs
    config = runs[0].config
    entries = [
        ("Model", distinct(run.config.get("model") for run in runs)),
        ("Problems", _problems(config)),
        ("Runs", f"{len(runs)}: {_several('method', len(comparison.methods))}, {_seeds(runs)}"),
        ("Steps", distinct(sorted({run.steps for run in runs}))),
        ("Tokens", _tokens(runs)),
        ("Time", duration(sum(run.total("seconds") or 0 for run in runs)) + " in all"),
        ("Cost", cost),
        ("Hardware", distinct(_hardware(run.environment.get("hardware")) for run in runs)),
        ("Versions", distinct(_pairs(run.environment.get("versions")) for run in runs)),
    ]
    if len(runs) == 1:
        entries[2] = ("Run", f"{runs[0].status}, seed {runs[0].seed}")
        entries[5] = ("Time", duration(runs[0].total("seconds") or 0))
    return [(name, text) for name, text in entries if text]


def verdict_rows(verdicts: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a claim, with a line for each set it was judged on."""
    rows: dict[str, Row] = {}
    for verdict in verdicts:
        row = rows.setdefault(verdict["claim"], {"claim": verdict["claim"], "source": verdict["source"], "lines": []})
        row["lines"].append(_verdict_line(verdict))
    return list(rows.values())


def unjudged_claims(unjudged: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Why claims cannot be judged, and for each reason the claims with the sets that this is about."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for one in unjudged:
        reasons.setdefault(one["reason"], {}).setdefault(one["claim"], []).append(short_name(one["set"]))
    return [
        (reason, [f"{claim.rstrip('.')} ({', '.join(sets)})" for claim, sets in claims.items()])
        for reason, claims in reasons.items()
    ]


def _verdict_line(verdict: Mapping[str, Any]) -> Row:
    share = verdict["measure"] in POINTS
    factor, unit, digits = (100, " points", 1) if share else (1, " nats" if "entropy" in verdict["measure"] else "", 3)
    low, high, value = verdict["low"], verdict["high"], verdict["difference"]
    reach = 1.0 if share else max(abs(low), abs(high), 1e-12) * 1.25  # what half of the small chart stands for
    return {
        "set": short_name(verdict["set"]),
        "measure": verdict["measure"],
        "verdict": verdict["verdict"],
        "sign": SIGNS[verdict["verdict"]],
        "difference": f"{factor * value:+.{digits}f}{unit}",
        "interval": f"{factor * low:+.{digits}f} to {factor * high:+.{digits}f}",
        "seeds": verdict["seeds"],
        "left": _place(low / reach),
        "right": _place(high / reach),
        "middle": _place(value / reach),
    }


def _place(share: float) -> str:
    """Where -1 to 1 lies on a line from left to right."""
    return f"{50 + 50 * max(-1.0, min(1.0, share)):.2f}%"


def count_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """How many verdicts hold, fail, are undecided: (verdict, sign, count)."""
    return [(name, sign, sum(one["verdict"] == name for one in verdicts)) for name, sign in SIGNS.items()]


def accuracy_table(comparison: Comparison, content: Mapping[str, Any], methods: Mapping[str, Look]) -> list[Row]:
    """The paper's table: the base and the methods as rows, the sets as columns.

    A method without a finished run is shown with its latest evaluations and marked as unfinished.
    """
    rows = []
    for place, (method, look) in enumerate({BASE: None, **methods}.items(), -1):
        if method == BASE:
            entry, seeds, finished = content["base"], None, True
        elif method in content["methods"]:
            entry = content["methods"][method]["evaluations"]
            seeds, finished = content["methods"][method]["seeds"], True
        else:
            entry, seeds, finished = latest(comparison.methods[method]), len(comparison.methods[method]), False
        cells = [cell(entry.get(name), content["best"].get(name) == method) for name in comparison.sets]
        title = look.title if look else "Base model"
        rows.append({"title": title, "place": place, "seeds": seeds, "finished": finished, "cells": cells})
    return rows


def latest(runs: Sequence[Run]) -> dict[str, Any]:
    """The latest evaluations of unfinished runs, in the form of a finished method's."""
    names = list(dict.fromkeys(name for run in runs for name in run.sets))
    found = {name: [one for run in runs if (one := run.last(name)) is not None] for name in names}
    return {name: summarise(evaluations) for name, evaluations in found.items() if evaluations}


def cell(metrics: Mapping[str, Any] | None, best: bool) -> Row | None:
    """An accuracy in percent with its interval, and where they lie on a line from 0 to 100 %."""
    accuracy = next((value for name, value in (metrics or {}).items() if name.startswith("avg@")), None)
    if accuracy is None:
        return None
    low, high = (accuracy[end] if accuracy[end] is not None else accuracy["value"] for end in ("low", "high"))
    percent = [100 * number for number in (accuracy["value"], low, high)]
    return {"value": f"{percent[0]:.1f}", "interval": f"{percent[1]:.1f}–{percent[2]:.1f}", "best": best} | {
        name: f"{number:.2f}%" for name, number in zip(("middle", "left", "right"), percent, strict=True)
    }


def completion_table(content: Mapping[str, Any], methods: Mapping[str, Look], name: str) -> list[Row]:
    """How the final models answer on one set: length, cut off, the teacher's style."""
    rows = []
    for method, look in {BASE: Look("Base model", "", ""), **methods}.items():
        entry = content["base"] if method == BASE else content["methods"].get(method, {}).get("evaluations", {})
        metrics = entry.get(name, {})
        if metrics:
            values = [metrics.get(key, {}).get("value") for key in ("completion/length", "completion/truncated")]
            style = metrics.get("style/teacher", {}).get("value")
            rows.append({"title": look.title, "length": _number(values[0]), "truncated": percent(values[1])})
            rows[-1]["style"] = percent(style)
    return rows


def differing_settings(comparison: Comparison, methods: Mapping[str, Look]) -> list[tuple[str, list[str]]]:
    """The configuration keys in which the methods differ, with the value of each method."""
    flat = [_flatten(comparison.methods[method][0].config) for method in methods]
    names = sorted({key for one in flat for key in one} - {"method", "seed", "output"})
    names = [name for name in names if not name.startswith("methods.")]
    values = {name: [str(one.get(name, "–")) for one in flat] for name in names}
    return [(name, row) for name, row in values.items() if len(set(row)) > 1]


def settings(run: Run) -> list[tuple[str, str]]:
    """The whole configuration of one run as dotted keys."""
    return [(key, str(value)) for key, value in _flatten(run.config).items() if not key.startswith("methods.")]


def short_name(name: str) -> str:
    """A set without the family it belongs to: miniature/hard is hard."""
    return name.removeprefix("miniature/")


def duration(seconds: float) -> str:
    """Seconds in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: float | None) -> str:
    """A large number with three digits and a suffix."""
    if number is None:
        return ""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.0f}"


def percent(share: float | None) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %" if share is not None else ""


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _number(value: float | None) -> str:
    return f"{value:.1f}" if value is not None else ""


def distinct(values: Any) -> str:
    """The values that there are, each once, separated by commas."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _several(word: str, number: int) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _seeds(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    return f"seed{'s' if len(seeds) > 1 else ''} {distinct(seeds)}"


def _problems(config: Mapping[str, Any]) -> str:
    section = config.get("data") or {}
    name, dials = str(section.get("train", "")), section.get("miniature") or {}
    if name != "miniature" or not {"problems", "traced", "shortest", "longest"} <= dials.keys():
        return name
    return (
        f"miniature: {dials['problems']} problems of {dials['shortest']} to {dials['longest']} operations, "
        f"{dials['traced']} with an expert trace"
    )


def _tokens(runs: Sequence[Run]) -> str:
    parts = {key: sum(run.total(key) or 0 for run in runs) for key in ("trained", "generated")}
    return f"{count(parts['trained'])} trained, {count(parts['generated'])} generated"


def _hardware(hardware: Any) -> str:
    if not isinstance(hardware, Mapping):
        return str(hardware or "")
    if hardware.get("gpu"):
        return str(hardware["gpu"])
    threads = hardware.get("threads")
    return f"{hardware.get('processor', '')}" + (f", {_several('thread', int(threads))}" if is_number(threads) else "")


def _pairs(values: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) if isinstance(values, Mapping) else ""


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
