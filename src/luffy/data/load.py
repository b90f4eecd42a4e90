"""Read problems from a JSONL file, or draw those of the built-in task.

Every row becomes a problem or a reason: nothing is left out without being counted and named by file and row.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luffy.config import MINIATURE, DataConfig, MiniatureConfig
from luffy.data import miniature
from luffy.data.rows import RowError, parse_row
from luffy.errors import DataError
from luffy.types import Problem, Trace

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FOREIGN_STARTS = {  # first bytes of files that are often taken for JSONL
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "a gzip file; unpack it",
    b"PK\x03\x04": "a zip file; unpack it",
    b"PAR1": "a Parquet file; export it as JSONL",
}


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row that is not a problem."""

    row: int  # line number in the file, from 1
    reason: str  # what is wrong with it
    duplicate_of: int | None = None  # the earlier row with the same id, if that is what is wrong


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """The problems of one source, and what was left out of it."""

    name: str  # the file as it was named, or `miniature`; empty for problems made in Python
    problems: list[Problem]
    rows: list[int]  # [problems] line numbers in the file, from 1; empty when there is no file
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


def load_problems(path: str | Path, *, on_bad_row: Literal["refuse", "drop"] = "refuse") -> LoadedProblems:
    """Read a JSONL file with a problem a line (docs/data.md describes the format).

    on_bad_row: what to do with a row that is not a problem; "refuse" raises at the first one.
    Raises DataError naming file and row for such a row, and for a file that cannot be read or holds no problem.
    """
    loaded = read_rows(path)
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
    """The problems that `data.train` names: a JSONL file, or the built-in task at its dials."""
    if config.train == MINIATURE:
        return _miniature_problems(config.miniature)
    return load_problems(config.train, on_bad_row=config.on_bad_row)


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


def read_rows(path: str | Path) -> LoadedProblems:
    """Read a JSONL file; rows that are not problems are in `dropped`. Raises DataError when the file has no rows."""
    path = Path(path)
    digest = hashlib.sha256()
    problems: list[Problem] = []
    rows: list[int] = []
    dropped: list[DroppedRow] = []
    row_of_id: dict[str, int] = {}
    for row, line in _lines(path, digest):
        try:
            problem = parse_row(line, default_id=f"row-{row}")
        except RowError as error:
            dropped.append(DroppedRow(row, str(error)))
            continue
        first = row_of_id.get(problem.id)
        if first is not None:
            dropped.append(DroppedRow(row, f"id {problem.id!r} is already used in row {first}", duplicate_of=first))
            continue
        row_of_id[problem.id] = row
        problems.append(problem)
        rows.append(row)
    if not problems and not dropped:
        raise DataError(f"{path}: the file is empty, expected a JSON object a line.")
    return LoadedProblems(str(path), problems, rows, dropped, digest.hexdigest())


def _lines(path: Path, digest: hashlib._Hash) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1; all its bytes go through `digest`."""
    try:
        with path.open("rb") as file:
            for row, line in enumerate(file, start=1):
                digest.update(line)
                if row == 1:
                    _refuse_foreign(path, line)
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if line.strip():
                    yield row, line
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected a JSONL file.{_files_inside(path)}") from None
    except DataError:
        raise
    except (OSError, ValueError) as error:  # no permission, a name with a zero byte, a failing disk
        raise DataError(f"{path}: cannot be read ({error}).") from None


def _refuse_foreign(path: Path, start: bytes) -> None:
    for first_bytes, what in FOREIGN_STARTS.items():
        if start.startswith(first_bytes):
            raise DataError(f"{path}: is {what} (expected JSONL: a JSON object a line).")


def _nearest_file(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir() if file.is_file()]
    except OSError:
        return f" There is no folder {str(path.parent)!r} either."
    close = difflib.get_close_matches(path.name, [*names, MINIATURE], n=1, cutoff=0.5)
    if not close:
        return ""
    return f" Did you mean {(MINIATURE if close[0] not in names else str(path.parent / close[0]))!r}?"


def _files_inside(path: Path) -> str:
    found = sorted(str(file) for file in path.glob("*.jsonl"))
    return f" It holds {', '.join(found[:3])}{' and others' if len(found) > 3 else ''}." if found else ""
