"""Write the part of a file that is good, and beside it what was left out and why: `luffy data check FILE --fix OUT`.

a row that is no problem, a prompt that cannot be written or is too long,
an answer that the verifier cannot read, a problem that is in a benchmark      the row is left out
a prompt that comes again with the same answer                                 the first row stays
a prompt that comes with different answers                                     all its rows are left out
a trace that earns no reward, is too long, or never closes its thought         the trace is left out
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from luffy.config import ColumnsConfig
from luffy.data.check_report import CheckReport
from luffy.data.columns import is_original
from luffy.data.load import ReadRow, iterate_rows
from luffy.data.readers import RowSource
from luffy.data.rows import KNOWN_KEYS, RowError, problem_row
from luffy.errors import DataError
from luffy.files import whole_file


def left_out_path(path: Path) -> Path:
    """Where what is left out of `clean.jsonl` goes: `clean-left-out.jsonl`."""
    return path.with_name(f"{path.stem}-left-out.jsonl")


def write_fixed(
    report: CheckReport,
    path: Path,
    *,
    columns: ColumnsConfig | None = None,
    subset: str | None = None,
    split: str = "train",
) -> dict[str, int]:
    """Write what the report finds good as JSONL to `path`, the rest, if any, with reasons to `left_out_path(path)`.

    columns, subset, split: as the file was checked with. Both files are written whole or not at all. Returns the
    counts `problems`, `traces`, `rows_left_out` and `traces_left_out`. Raises DataError when nothing would be left or
    the file changed since, RunError when a file cannot be written.
    """
    if path.resolve() == Path(report.path).resolve():
        raise DataError(f"{path}: is the file that is checked; give --fix another name.")
    rows_out, traces_out = _rows_out(report), _traces_out(report)
    counts = {"problems": 0, "traces": 0, "rows_left_out": 0, "traces_left_out": 0}
    source = RowSource(report.path, subset=subset, split=split)
    with whole_file(left_out_path(path)) as left_out, whole_file(path) as clean:
        for row in iterate_rows(source, columns):
            kept, findings = _divide(row, rows_out, traces_out)
            if kept is not None and not (columns and columns.given) and not is_original(row.raw):
                kept |= {key: value for key, value in row.raw.items() if key not in KNOWN_KEYS}
            for finding in findings:
                left_out.write(_line(finding))
                counts["rows_left_out" if finding["trace"] is None else "traces_left_out"] += 1
            if kept is not None:
                clean.write(_line(kept))
                counts["problems"] += 1
                counts["traces"] += len(kept.get("traces", ()))
        if source.digest != report.digest:
            raise DataError(f"{report.path}: changed while it was checked; check it again.")
        if not counts["problems"]:
            raise DataError(f"{report.path}: no problem would be left, so nothing was written.")
    remove_empty(left_out_path(path))
    return counts


def remove_empty(path: Path) -> None:
    """Remove the file of what was left out when that is nothing."""
    if path.stat().st_size == 0:
        path.unlink()


def _rows_out(report: CheckReport) -> dict[int, str]:
    """Why rows that are problems are left out, by row."""
    reasons: dict[int, str] = {}
    for repeated in report.repeated_prompts:
        if len(repeated.answers) > 1:
            listed = ", ".join(map(str, repeated.rows))
            reasons |= dict.fromkeys(repeated.rows, f"the same prompt has different answers (rows {listed})")
        else:
            reasons |= dict.fromkeys(repeated.rows[1:], f"the same prompt and answer as row {repeated.rows[0]}")
    if report.prompt_lengths is not None:
        limit = report.prompt_lengths.limit
        reasons |= {
            cut.row: f"the prompt has {cut.tokens} tokens, the limit is {limit}" for cut in report.prompt_lengths.cuts
        }
    reasons |= {item.row: item.reason for item in report.bad_answers}
    reasons |= {item.row: item.reason for item in report.bad_prompts}
    reasons |= {item.row: f"{item.benchmark} has it too: {item.words!r}" for item in report.overlaps}
    return reasons


def _traces_out(report: CheckReport) -> dict[tuple[int, int], str]:
    """Why traces are left out, by row and number of the trace from 1."""
    reasons = {(item.row, item.trace): "never closes its thought" for item in report.unclosed_traces}
    if report.trace_lengths is not None:
        limit = report.trace_lengths.limit
        reasons |= {
            (cut.row, cut.trace): f"has {cut.tokens} tokens, the limit is {limit}"
            for cut in report.trace_lengths.cuts
            if cut.trace is not None
        }
    return reasons | {(item.row, item.trace): item.reason for item in report.wrong_traces}


def _divide(
    row: ReadRow, rows_out: Mapping[int, str], traces_out: Mapping[tuple[int, int], str]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """What stays of a row, and what does not with its reasons."""
    if row.problem is None:
        raw = row.raw.content if isinstance(row.raw, RowError) else row.raw
        reason = row.dropped.reason if row.dropped else ""
        return None, [{"row": row.number, "trace": None, "reason": reason, "content": raw}]
    if row.number in rows_out:
        reason = rows_out[row.number]
        return None, [{"row": row.number, "trace": None, "reason": reason, "content": problem_row(row.problem)}]
    out = {
        number: traces_out[row.number, number]
        for number in range(1, len(row.problem.traces) + 1)
        if (row.number, number) in traces_out
    }
    traces = row.problem.traces
    findings = [
        {"row": row.number, "trace": number, "reason": reason, "content": traces[number - 1].text}
        for number, reason in out.items()
    ]
    problem = replace(row.problem, traces=tuple(trace for number, trace in enumerate(traces, 1) if number not in out))
    return problem_row(problem), findings


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"
