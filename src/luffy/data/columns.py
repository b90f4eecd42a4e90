"""Columns with names of their own, and the original's files, as rows with our keys.

A mapping (`data.columns`) says which column holds what; a dotted path reaches into a nested one:

    {"prompt": "question", "answer": "reward_model.ground_truth", "traces": ["solution_1", "solution_2"]}

The original LUFFY code writes Parquet with `prompt` (messages), `reward_model.ground_truth`, `data_source`, `target`
(a list of {content}) and, where known, the teacher's probabilities. Such rows are recognised and need no mapping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luffy.config import ColumnsConfig, nearest
from luffy.data.rows import KNOWN_KEYS, OTHER_NAMES, RowError, kind_of
from luffy.errors import DataError

ORIGINAL = ColumnsConfig(
    prompt="prompt", answer="reward_model.ground_truth", source="data_source", traces=("target", "target_lst")
)
ORIGINAL_PROBABILITIES = (
    "target_ds_qwen_7b_probs"  # [tokens and end-of-sequence], probabilities and not their logarithms
)
SMALLEST_PROBABILITY = 1e-6  # the original adds it to a probability before dividing by it

_ABSENT = object()


class Columns:
    """Turns rows as they are in a file into rows with our keys, and remembers which columns it found."""

    def __init__(self, mapping: ColumnsConfig | None, name: str) -> None:
        """mapping: what the recipe says. name: of the file, for messages."""
        self.mapping = mapping if mapping is not None and mapping.given else None
        self.name = name
        self._missing = dict(self._paths(self.mapping)) if self.mapping else {}

    @staticmethod
    def _paths(mapping: ColumnsConfig) -> Iterable[tuple[str, str]]:
        """(path, key of the recipe) of each mapped column."""
        for key in type(mapping).model_fields:
            value = getattr(mapping, key)
            for path in (value,) if isinstance(value, str) else value or ():
                yield path, f"data.columns.{key}"

    def check_header(self, header: Sequence[str]) -> None:
        """Refuse columns that cannot be what is asked for, before any row is read. Raises DataError."""
        for path, key in self._missing.items():
            if path not in header and path.partition(".")[0] not in header:
                raise DataError(self._no_column(path, key, header))
        if is_original(header):
            return
        lacking = [
            key
            for key in ("prompt", "answer")
            if key not in header and not (self.mapping and getattr(self.mapping, key))
        ]
        if lacking:
            likely = {key: next((name for name in OTHER_NAMES[key] if name in header), None) for key in lacking}
            hint = f" Did you mean {likely[lacking[0]]!r}?" if likely[lacking[0]] else nearest(lacking[0], header)
            raise DataError(
                f"{self.name}: there is no column {lacking[0]!r}.{hint} It has: {', '.join(header)}. Say which it is: "
                + " ".join(f"data.columns.{key}={name or 'COLUMN'}" for key, name in likely.items())
            )

    def check_found(self, header: Iterable[str]) -> None:
        """Refuse a mapped column that no row had; `header`: the names that were seen. Raises DataError."""
        for path, key in self._missing.items():
            raise DataError(self._no_column(path, key, list(header)))

    def _no_column(self, path: str, key: str, header: Sequence[str]) -> str:
        ours = key.rpartition(".")[2]
        hint = f" Leave {key} out: there is {ours!r}." if ours in header else nearest(path, header)
        return f"{self.name}: there is no column {path!r} ({key}).{hint} It has: {', '.join(header)}."

    def translate(self, row: Any) -> Any:
        """The row with our keys; one that needs no translation as it is. Raises RowError."""
        if not isinstance(row, dict):
            return row
        if self.mapping is None and not is_original(row):
            return row
        mapping = self.mapping or ORIGINAL
        if self.mapping is not None and is_original(row):
            set_by_hand = {key: value for key, value in self.mapping if value}
            mapping = ORIGINAL.model_copy(update=set_by_hand)
        translated = {key: row[key] for key in KNOWN_KEYS if key in row and key not in ("trace", "traces")}
        for key in ("prompt", "answer", "id", "source"):
            path = getattr(mapping, key)
            if path is not None:
                value = self._find(row, path)
                translated[key] = None if value is _ABSENT else value
        if is_original(row):
            translated |= {"answer": _only(translated.get("answer")), "source": translated.get("source") or None}
        if mapping.traces:
            translated["traces"] = self._traces(row, mapping)
        else:
            translated |= {key: row[key] for key in ("trace", "traces") if key in row}
        return translated

    def _find(self, row: Mapping[str, Any], path: str) -> Any:
        """What stands at a path, or `_ABSENT`."""
        value: Any = row.get(path, _ABSENT)
        if value is _ABSENT:
            value = row
            for part in path.split("."):
                value = _member(value, part)
        if value is not _ABSENT:
            self._missing.pop(path, None)
        return value

    def _traces(self, row: Mapping[str, Any], mapping: ColumnsConfig) -> list[dict[str, Any]]:
        found = [self._find(row, path) for path in mapping.traces]
        texts = [text for value in found if value is not _ABSENT for text in _texts(value)]
        models = self._per_trace(row, mapping.model, len(texts), is_list=lambda value: isinstance(value, list))
        logprobs = self._per_trace(row, mapping.logprobs, len(texts), is_list=_nested)
        if mapping.logprobs is None and row.get(ORIGINAL_PROBABILITIES) is not None:
            logprobs = [_logarithms(row[ORIGINAL_PROBABILITIES]), *[None] * (len(texts) - 1)][: len(texts)]
        return [
            {"text": text, "model": model, "logprobs": values}
            for text, model, values in zip(texts, models, logprobs, strict=True)
        ]

    def _per_trace(self, row: Mapping[str, Any], path: str | None, traces: int, *, is_list: Any) -> list[Any]:
        """The value of a column for each trace: the same for all, or one each."""
        value = self._find(row, path) if path else None
        if value is _ABSENT or value is None:
            return [None] * traces
        if not is_list(value):
            return [value] * traces
        if len(value) != traces:
            raise RowError(f"column {path!r} has {len(value)} values for {traces} traces")
        return list(value)


def is_original(columns: Iterable[str]) -> bool:
    """Whether these are the columns of the original's training or evaluation files."""
    names = set(columns)
    return {"prompt", "reward_model"} <= names and "answer" not in names


def _member(value: Any, part: str) -> Any:
    """The part of a nested value; a number counts the elements of a list from 0."""
    if isinstance(value, dict):
        return value.get(part, _ABSENT)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return _ABSENT


def _only(value: Any) -> Any:
    """The reference answer of the original's schema, which may be a list with one answer."""
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise RowError(f"'reward_model.ground_truth' is a list of {len(value)} answers, expected one")
    return value[0]


def _texts(value: Any) -> list[Any]:
    """The traces in a column: a text, a list of texts, a list of objects with `content` or `text`, or messages."""
    if value is None or value == "":
        return []
    if isinstance(value, dict):
        text = value.get("text", value.get("content"))
        if text is None:
            raise RowError(f"a trace is an object without 'text' or 'content', it has: {', '.join(map(str, value))}")
        return [text] if value.get("role", "assistant") == "assistant" else []
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if not isinstance(value, str):
        raise RowError(f"a trace must be text, got {kind_of(value)}")
    return [value]


def _nested(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list | None)


def _logarithms(probabilities: Any) -> list[float]:
    """The original's teacher probabilities as log-probs, with its guard against a division by zero."""
    if not isinstance(probabilities, list):
        raise RowError(f"{ORIGINAL_PROBABILITIES!r} must be a list of probabilities, got {kind_of(probabilities)}")
    logprobs = []
    for number, value in enumerate(probabilities, start=1):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1.001:
            raise RowError(f"probability {number} of {ORIGINAL_PROBABILITIES!r} is {value!r}, expected 0 to 1")
        logprobs.append(min(0.0, math.log(value + SMALLEST_PROBABILITY)))
    return logprobs
