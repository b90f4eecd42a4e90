"""The problems for `real_model.py`: sums of one-digit numbers, which a small model gets right by working them out.

    Question: 6 + 9 + 1 + 8        ` 6 + 9 = 15`, `15 + 1 = 16`, `16 + 8 = 24`: the trace, a line a step
    Answer:

No sum of one set occurs in another. The sets:

    train       sums of 3 and 4 numbers, each with a trace
    validation  the same, without: learning rates are chosen on it and on nothing else
    sums        the same: in distribution
    longer      sums of 5 and 6 numbers
    worded      sums of 3 and 4 numbers as a small story
    unrelated   copying a number, number words, and questions of general knowledge: what may be forgotten
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

PROMPT = "Question: {}\nAnswer:"
SEED = 20250421
SIZES = {"train": 128, "validation": 64, "sums": 100, "longer": 100, "worded": 100}
TERMS = {"longer": (5, 6)}  # numbers in a sum; the other sets: 3 and 4
COPIED, SPELLED = 30, 30  # problems of `unrelated` beside the facts

Row = dict[str, Any]

PEOPLE = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lucy")
THINGS = ("apples", "coins", "books", "marbles", "stamps", "shells")
NUMERALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"

FACTS = {
    "How many legs does a spider have?": 8,
    "How many legs does an insect have?": 6,
    "How many legs does a dog have?": 4,
    "How many legs does a bird have?": 2,
    "How many arms does an octopus have?": 8,
    "How many days are in a week?": 7,
    "How many months are in a year?": 12,
    "How many weeks are in a year?": 52,
    "How many days are in a year?": 365,
    "How many days are in the month of January?": 31,
    "How many hours are in a day?": 24,
    "How many minutes are in an hour?": 60,
    "How many seconds are in a minute?": 60,
    "How many years are in a century?": 100,
    "How many years are in a decade?": 10,
    "How many sides does a triangle have?": 3,
    "How many sides does a square have?": 4,
    "How many sides does a pentagon have?": 5,
    "How many sides does a hexagon have?": 6,
    "How many sides does an octagon have?": 8,
    "How many degrees are in a circle?": 360,
    "How many degrees are in a right angle?": 90,
    "How many centimeters are in a meter?": 100,
    "How many meters are in a kilometer?": 1000,
    "How many grams are in a kilogram?": 1000,
    "How many inches are in a foot?": 12,
    "How many cents are in a dollar?": 100,
    "How many letters are in the English alphabet?": 26,
    "How many vowels are in the English alphabet?": 5,
    "How many continents are there?": 7,
    "How many planets are in the solar system?": 8,
    "How many states does the USA have?": 50,
    "How many colors are in a rainbow?": 7,
    "How many wheels does a bicycle have?": 2,
    "How many wheels does a car have?": 4,
    "How many strings does a violin have?": 4,
    "How many players are in a soccer team on the field?": 11,
    "How many fingers are on one hand?": 5,
    "How many eggs are in a dozen?": 12,
    "In which year did the First World War begin?": 1914,
}


def write_sets(folder: Path) -> None:
    """Write every set as FOLDER/NAME.jsonl; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[tuple[int, ...]] = set()
    for name, size in SIZES.items():
        rows = [sum_row(name, number, terms) for number, terms in enumerate(draw_sums(name, size, taken))]
        write_rows(folder / f"{name}.jsonl", rows)
    write_rows(folder / "unrelated.jsonl", unrelated_rows())


def draw_sums(name: str, size: int, taken: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """As many sums as asked for, of numbers from 1 to 9, none of them among `taken`, to which they are added."""
    chance = random.Random(f"{SEED}/{name}")
    drawn: list[tuple[int, ...]] = []
    while len(drawn) < size:
        terms = tuple(chance.randint(1, 9) for _ in range(chance.randint(*TERMS.get(name, (3, 4)))))
        if terms not in taken:
            taken.add(terms)
            drawn.append(terms)
    return drawn


def sum_row(name: str, number: int, terms: tuple[int, ...]) -> Row:
    """A sum as a problem; with its trace in the training set, as a story in `worded`."""
    question = story(number, terms) if name == "worded" else " + ".join(map(str, terms))
    row: Row = {"id": f"{name}-{number}", "prompt": PROMPT.format(question), "answer": str(sum(terms))}
    return row | {"traces": [worked_out(terms)]} if name == "train" else row


def worked_out(terms: tuple[int, ...]) -> str:
    """The sum from left to right, a line a step; the last number is the answer."""
    total, lines = terms[0], []
    for term in terms[1:]:
        lines.append(f"{total} + {term} = {total + term}")
        total += term
    return " " + "\n".join(lines)  # the space belongs to the first number: the prompt ends with a colon


def story(number: int, terms: tuple[int, ...]) -> str:
    """The sum as something that happens to somebody."""
    person, things = PEOPLE[number % len(PEOPLE)], THINGS[number // len(PEOPLE) % len(THINGS)]
    more = ", then ".join(map(str, terms[1:]))
    return f"{person} has {terms[0]} {things} and gets {more} more. How many {things} does {person} have now?"


def unrelated_rows() -> list[Row]:
    """Numbers to copy, numbers in words, general knowledge."""
    chance = random.Random(f"{SEED}/unrelated")
    copied = [(f"Repeat this number: {number}", number) for number in chance.sample(range(100, 10_000), COPIED)]
    spelled = [(f"What is {in_words(number)} in digits?", number) for number in chance.sample(range(11, 100), SPELLED)]
    return [
        {"id": f"unrelated-{number}", "prompt": PROMPT.format(question), "answer": str(answer)}
        for number, (question, answer) in enumerate([*copied, *spelled, *FACTS.items()])
    ]


def in_words(number: int) -> str:
    """A number below 100: forty-three."""
    small, tens = NUMERALS.split(), TENS.split()
    if number < len(small):
        return small[number]
    return tens[number // 10] + (f"-{small[number % 10]}" if number % 10 else "")


def write_rows(path: Path, rows: list[Row]) -> None:
    """One object a line; an unchanged file is left alone."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
