"""Which problems are in a benchmark too, as the field finds out: by word 13-grams, and exact matches of shorter texts.

Texts are compared as sequences of words: Unicode compatibility forms unified, lower case, everything but letters and
digits a separator. A problem overlaps with a benchmark's when 13 words in a row are the same (GPT-3, arXiv 2005.14165,
appendix C), or, of those with fewer words, when all are. Instructions around the problems would match everywhere:
system messages do not count, nor do 13-grams that more than `TOO_COMMON` problems of one benchmark share.

Only prompts are compared. A problem in other words, or with other numbers, is not found by this.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from luffy.types import Problem

GRAM = 13  # words
TOO_COMMON = 10  # different problems of a benchmark; GPT-3 drops what more than 10 documents share

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A problem that a benchmark has too."""

    row: int
    benchmark: str
    problem: str  # id of the benchmark's problem
    words: str  # what both have: 13 words, or all of them


class OverlapIndex:
    """The n-grams of benchmarks."""

    def __init__(self, benchmarks: Mapping[str, Iterable[Problem]]) -> None:
        """benchmarks: their problems by name."""
        self._grams: dict[str, tuple[str, str]] = {}  # n-gram or whole text -> (benchmark, problem)
        self.ignored = 0  # n-grams that too many problems share
        for name, problems in benchmarks.items():
            self._add(name, problems)

    def _add(self, name: str, problems: Iterable[Problem]) -> None:
        seen: set[str] = set()
        counts: dict[str, int] = {}
        first: dict[str, str] = {}
        for problem in problems:
            words = problem_words(problem)
            whole = " ".join(words)
            if not whole or whole in seen:  # benchmarks repeat their problems for avg@k
                continue
            seen.add(whole)
            for gram in set(_grams(words)):
                counts[gram] = counts.get(gram, 0) + 1
                first.setdefault(gram, problem.id)
        for gram, count in counts.items():
            if count > TOO_COMMON:
                self.ignored += 1
            else:
                self._grams.setdefault(gram, (name, first[gram]))

    def find(self, problem: Problem, row: int) -> Overlap | None:
        """The first overlap of a problem, or None."""
        for gram in _grams(problem_words(problem)):
            found = self._grams.get(gram)
            if found is not None:
                return Overlap(row, found[0], found[1], gram)
        return None


def problem_words(problem: Problem) -> list[str]:
    """The words of what the user says in a problem's prompt."""
    if isinstance(problem.prompt, str):
        text = problem.prompt
    else:
        text = " ".join(message["content"] for message in problem.prompt if message["role"] == "user")
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _grams(words: Sequence[str]) -> Iterator[str]:
    """The n-grams of a text, or the text itself where it is shorter than one."""
    if len(words) < GRAM:
        if words:
            yield " ".join(words)
        return
    for start in range(len(words) - GRAM + 1):
        yield " ".join(words[start : start + GRAM])
