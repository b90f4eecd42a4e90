"""Read problems from a file, a saved data set or the hub, or draw those of the built-in task.

Every row becomes a problem or a reason: nothing is left out without being counted and named by file and row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from luffy.config import MINIATURE, ColumnsConfig, DataConfig, MiniatureConfig
from luffy.data import miniature
from luffy.data.columns import Columns
from luffy.data.readers import RowSource
from luffy.data.rows import RowError, parse_problem
from luffy.errors import DataError
from luffy.types import Problem, Trace

OnProgress = Callable[[int, float | None], None]  # (rows so far, share of the source that has been read)


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row that is not a problem."""

    row: int  # number in the file: of the line, the element, or as a spreadsheet counts
    reason: str  # what is wrong with it
    duplicate_of: int | None = None  # the earlier row with the same id, if that is what is wrong


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row of a source: a problem, or the reason why it is none."""

    number: int
    raw: Any  # as the source has it, for those who must show or keep it
    problem: Problem | None
    dropped: DroppedRow | None


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """The problems of one source, and what was left out of it."""

    name: str  # the file as it was named, or `miniature`; empty for problems made in Python
    problems: list[Problem]
    rows: list[int]  # [problems] row numbers in the file; empty when there is no file
    dropped: list[DroppedRow]
    digest: str  # SHA-256 of the file's bytes, or of whatever defines the problems

    def where(self, index: int) -> str:
        """How a message names a problem: `train.jsonl, row 12` or `problem 'train-11'`."""
        return f"{self.name}, row {self.rows[index]}" if self.rows else f"problem {self.problems[index].id!r}"

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> LoadedProblems:
        """Problems made in Python, checked for what types alone do not say. Raises DataError."""
        ids: set[str] = set()
        for index, problem in enumerate(problems):
            where = f"problem {problem.id!r}"
            if not problem.prompt or not isinstance(problem.prompt, str | tuple):
                raise DataError(f"{where}: prompt must be text or a tuple of chat messages, and not empty.")
            if not isinstance(problem.answer, str) or not problem.answer.strip():
                raise DataError(f"{where}: answer must be text and not empty, got {problem.answer!r}.")
            if not all(isinstance(trace, Trace) for trace in problem.traces):
                raise DataError(f"{where}: traces must be Trace objects, for example Trace('17 + 5 = 22. #### 22').")
            if problem.id in ids:
                raise DataError(f"{where}: the id is used twice (problem number {index + 1} of the list).")
            ids.add(problem.id)
        if not problems:
            raise DataError("the list of problems is empty.")
        return cls(
            "", list(problems), [], [], hashlib.sha256(repr(list(problems)).encode("utf-8", "replace")).hexdigest()
        )


def load_problems(
    path: str | Path,
    *,
    on_bad_row: Literal["refuse", "drop"] = "refuse",
    columns: ColumnsConfig | None = None,
    subset: str | None = None,
    split: str = "train",
) -> LoadedProblems:
    """Read problems from a JSONL, JSON, CSV or Parquet file, a folder saved by `datasets`, or the hub (docs/data.md).

    on_bad_row: what to do with a row that is not a problem; "refuse" raises at the first one. columns: which column
    holds what, where the names are not ours. subset, split: of a data set on the hub or a saved folder.
    Raises DataError naming file and row for such a row, and for a source that cannot be read or holds no problem.
    """
    loaded = read_rows(path, columns=columns, subset=subset, split=split)
    if loaded.dropped and on_bad_row == "refuse":
        first, others = loaded.dropped[0], len(loaded.dropped) - 1
        more = (
            f" {others} more bad {'row' if others == 1 else 'rows'}; `luffy data check {path}` lists them."
            if others
            else ""
        )
        raise DataError(f"{path}, row {first.row}: {first.reason}.{more} To leave bad rows out: data.on_bad_row=drop")
    if not loaded.problems:
        first = loaded.dropped[0]
        raise DataError(
            f"{path}: none of its {len(loaded.dropped)} rows is a problem. Row {first.row}: {first.reason}."
        )
    return loaded


def load_training_problems(config: DataConfig) -> LoadedProblems:
    """The problems that `data.train` names: a file or data set, or the built-in task at its dials."""
    if config.train == MINIATURE:
        return _miniature_problems(config.miniature)
    return load_problems(
        config.train,
        on_bad_row=config.on_bad_row,
        columns=config.columns,
        subset=config.subset,
        split=config.split,
    )


def hold_out(source: LoadedProblems, count: int) -> tuple[LoadedProblems, list[Problem]]:
    """What is left to train on, and `count` problems for evaluation alone.

    Which ones depends on the problems' ids only, so that it stays nearly the same when rows are added or reordered.
    Raises DataError when nothing would be left to train on.
    """
    if count >= len(source.problems):
        raise DataError(f"data.holdout={count}: there are only {len(source.problems)} problems in all.")
    order = sorted(range(len(source.problems)), key=lambda index: _place(source.problems[index].id))
    held = set(order[:count])
    kept = [index for index in range(len(source.problems)) if index not in held]
    rest = replace(
        source,
        problems=[source.problems[index] for index in kept],
        rows=[source.rows[index] for index in kept] if source.rows else [],
    )
    return rest, [source.problems[index] for index in sorted(held)]


def _place(identifier: str) -> str:
    return hashlib.sha256(f"holdout/{identifier}".encode("utf-8", "replace")).hexdigest()


def _miniature_problems(dials: MiniatureConfig) -> LoadedProblems:
    problems = miniature.training_problems(
        problems=dials.problems,
        traced=dials.traced,
        style=dials.style,
        wrong=dials.wrong,
        operations=(dials.shortest, dials.longest),
        seed=dials.seed,
    )
    digest = hashlib.sha256(json.dumps(dials.model_dump(), sort_keys=True).encode()).hexdigest()
    return LoadedProblems(MINIATURE, problems, [], [], digest)


def read_rows(
    path: str | Path, *, columns: ColumnsConfig | None = None, subset: str | None = None, split: str = "train"
) -> LoadedProblems:
    """Read a source; rows that are not problems are in `dropped`. Raises DataError when it has no rows."""
    source = RowSource(path, subset=subset, split=split)
    problems: list[Problem] = []
    rows: list[int] = []
    dropped: list[DroppedRow] = []
    for row in iterate_rows(source, columns):
        if row.problem is not None:
            problems.append(row.problem)
            rows.append(row.number)
        elif row.dropped is not None:
            dropped.append(row.dropped)
    return LoadedProblems(str(path), problems, rows, dropped, source.digest)


def iterate_rows(source: RowSource, mapping: ColumnsConfig | None = None) -> Iterator[ReadRow]:
    """The rows of a source one after the other, so that a file larger than the memory can be gone through.

    Raises DataError when the source cannot be read, lacks a column that was asked for, or has no rows.
    """
    columns = Columns(mapping, source.name)
    row_of_id: dict[str, int] = {}
    names: dict[str, None] = {}  # of the columns that were seen, for sources without a header
    number = 0
    for number, raw in source.rows(columns.check_header):
        names.update(dict.fromkeys(raw) if isinstance(raw, dict) else {})
        try:
            if isinstance(raw, RowError):
                raise raw
            problem = parse_problem(columns.translate(raw), default_id=f"row-{number}")
        except RowError as error:
            yield ReadRow(number, raw, None, DroppedRow(number, str(error)))
            continue
        first = row_of_id.setdefault(problem.id, number)
        if first != number:
            reason = f"id {problem.id!r} is already used in row {first}"
            yield ReadRow(number, raw, None, DroppedRow(number, reason, duplicate_of=first))
            continue
        yield ReadRow(number, raw, problem, None)
    if number == 0:
        raise DataError(f"{source.name}: the file is empty, expected a problem a row (JSONL: a JSON object a line).")
    if names:
        columns.check_found(names)
