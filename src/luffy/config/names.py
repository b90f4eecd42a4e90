"""The name that a mistyped one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean '...'?` for the closest known word, or an empty string.

    Of dotted keys the last part counts most: it may be right under a wrong section, cut short, or its initials (`lr`).
    """
    section, _, last = word.rpartition(".")
    names = sorted(known, key=lambda name: name.rpartition(".")[0] != section)  # those of the same section first
    tails = [name.rpartition(".")[2] for name in names]
    close = [name for name, tail in zip(names, tails, strict=True) if last in (tail, _initials(tail))]
    close = close or [name for name, tail in zip(names, tails, strict=True) if len(last) > 2 and tail.startswith(last)]
    close = close or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    close = close or [names[tails.index(tail)] for tail in difflib.get_close_matches(last, tails, n=1, cutoff=0.6)]
    return f" Did you mean {close[0]!r}?" if close else ""


def _initials(name: str) -> str:
    """`lr` of `learning_rate`; nothing for a name of one word."""
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""
