"""Every answer of a teacher, a line each, on disk before the next question is asked.

    {"settings": {...}}                                             the first line
    {"problem": "gsm8k-17", "sample": 0, "text": "...", "finished": true, "correct": true, "extracted": "72", ...}

A line that a kill cut off is dropped when the journal is opened again: its question is asked again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any, Self

from luffy.errors import RunError
from luffy.files import read_lines, write_whole, writing

Key = tuple[str, int]  # problem, number of the sample


class Journal:
    """The answers so far, and the file that they are in; a context manager. One process at a time."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """settings: what the answers depend on. Raises RunError naming the keys that differ from those of the file."""
        self.path = path
        self.answers: dict[Key, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings))
        lines = read_lines(path)
        if lines:
            self._check(lines[0].get("settings"), settings)
            self.answers = {(line["problem"], line["sample"]): line for line in lines[1:]}
        head = json.dumps({"settings": settings}, ensure_ascii=False) + "\n"
        write_whole(path, head + "".join(_line(answer) for answer in self.answers.values()))
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        with writing(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def add(self, answer: dict[str, Any]) -> None:
        """Keep an answer; it is on disk when this returns. Raises RunError when it cannot be written."""
        if self._file is None:
            raise RunError(f"{self.path}: is not open.")
        with writing(self.path):
            self._file.write(_line(answer))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.answers[answer["problem"], answer["sample"]] = answer

    def _check(self, known: Any, settings: dict[str, Any]) -> None:
        if not isinstance(known, dict):
            raise RunError(f"{self.path}, line 1: is not a journal of `luffy data collect`. Choose another --out.")
        differing = sorted(key for key in settings.keys() | known.keys() if settings.get(key) != known.get(key))
        if differing:
            shown = ", ".join(f"{key}: {known.get(key)!r} there, {settings.get(key)!r} now" for key in differing)
            raise RunError(
                f"{self.path} holds answers to other questions ({shown}). Choose another --out or delete the file."
            )


def _line(answer: dict[str, Any]) -> str:
    text = json.dumps(answer, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode() + "\n"  # a server may send half of a surrogate pair
