"""Multiple-choice problems: question and options in, a problem whose answer is a letter out.

    Which is a prime?        choice_problem("p1", "Which is a prime?", ["91", "57", "97"], correct=2, seed=0)

    A. 57
    B. 97
    C. 91

    Answer with the letter of the correct option.

Options are shuffled by a seed, as the paper does in its evaluation, so that a model cannot know the benchmark's order
by heart. The order depends on seed and id alone. Reward: `reward.kind=choice`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from luffy.errors import DataError
from luffy.reward.choice import LETTERS
from luffy.types import Problem

INSTRUCTION = "Answer with the letter of the correct option."

# "All of the above", "Both A and B", "Neither of these": options that mean something else in another order.
_REFERS_TO_OTHERS = re.compile(
    r"\b(?:(?i:of|the) (?i:the )?(?i:above|below|others?|following)|"
    r"(?i:all|none|both|neither|either) (?i:of )?(?i:these|them)|"
    r"[A-J](?: and| or| nor|,) [A-J]|(?i:options?|choices?|answers?) \(?[A-J])\b"
)


def choice_problem(
    problem_id: str,
    question: str,
    options: Sequence[str],
    *,
    correct: int,
    seed: int | None,
    source: str = "",
    instruction: str = INSTRUCTION,
) -> Problem:
    """A problem with lettered options, whose answer is the letter of the correct one.

    options: 2 to 10 texts. correct: the index of the right one, from 0. seed: shuffles them; None, or options that
    refer to each other ("none of the above"), leaves their order. instruction: after the options; empty: none. Raises
    DataError for options that make no problem.
    """
    where = f"problem {problem_id!r}"
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"{where}: has {len(options)} options, expected 2 to {len(LETTERS)}.")
    if not 0 <= correct < len(options):
        raise DataError(f"{where}: the correct option is number {correct} (from 0) of {len(options)}.")
    if options.count(options[correct]) > 1:
        raise DataError(f"{where}: the correct option {options[correct]!r} comes twice: two letters would be right.")
    order = list(range(len(options)))
    if seed is not None and not any(map(_REFERS_TO_OTHERS.search, options)):
        random.Random(f"options/{seed}/{problem_id}").shuffle(order)
    lines = "\n".join(f"{letter}. {options[place]}" for letter, place in zip(LETTERS, order, strict=False))
    parts = [question.strip(), lines, *([instruction] if instruction else [])]
    return Problem(problem_id, "\n\n".join(parts), LETTERS[order.index(correct)], source)
