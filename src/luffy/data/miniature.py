"""The miniature: a task on which the claims of the paper can be checked on a laptop in minutes.

A problem is a chain of arithmetic, worked from left to right, keeping the last two digits:

    prompt        Q17+5*7-4*3-7:
    working-out   17+5=22*7=54-4=50*3=50-7=43#43      in the words of the base model
    teacher       17+5=22,22*7=54,54-4=50,50*3=50,50-7=43#43
    direct        #43

Operators are `+` and `-` with 1..9 and, a third of the time, `*` with 3 or 7; guessing succeeds once in a hundred.
The base model was trained on a small corpus (`Corpus`) in which chains are worked out under one heading (`W`), while
under the others (`Q`, `P`) the working-out breaks off: at every step the writer goes on with a small probability only,
often with a slip, and else writes the answer down. So the base knows how to work, and no single decision that a
working-out of a question takes is absurd to it; but there are many of them, and all must be taken at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luffy.types import Problem, Trace

ALPHABET = "0123456789+-*=#:,QPWRM"
STYLES = ("teacher", "base")


def calculate(value: int, sign: str, operand: int) -> int:
    """One step, keeping the last two digits."""
    return {"+": value + operand, "-": value - operand, "*": value * operand}[sign] % 100


@dataclass(frozen=True, slots=True)
class Chain:
    """A start value and the (operator, operand) pairs applied to it from left to right."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def values(self) -> list[int]:
        """The value after each operation, modulo 100."""
        value, values = self.start, []
        for sign, operand in self.operations:
            value = calculate(value, sign, operand)
            values.append(value)
        return values

    @property
    def answer(self) -> str:
        """The last value, two digits."""
        return f"{self.values[-1]:02d}"

    def question(self, heading: str) -> str:
        """The prompt, such as `Q17+5*7:`."""
        return f"{heading}{self.start:02d}" + "".join(f"{sign}{operand}" for sign, operand in self.operations) + ":"

    def working(self, style: str = "base") -> str:
        """The working-out that ends in the answer; `style` is one of `STYLES`."""
        return write_steps(self.start, self.operations, self.values, style) + f"#{self.answer}"


def write_steps(start: int, operations: Sequence[tuple[str, int]], values: Sequence[int], style: str) -> str:
    """Steps as text: `17+5=22*7=54` in the base's style, `17+5=22,22*7=54` in the teacher's."""
    steps: list[str] = []
    for before, (sign, operand), value in zip([start, *values], operations, values, strict=False):
        left = f"{before:02d}" if style == "teacher" or not steps else ""
        steps.append(f"{left}{sign}{operand}={value:02d}")
    return ("," if style == "teacher" else "").join(steps)


def draw_chain(generator: random.Random, shortest: int, longest: int) -> Chain:
    """Draw a chain of `shortest` to `longest` operations."""
    operations = []
    for _ in range(generator.randint(shortest, longest)):
        if generator.random() < 1 / 3:
            operations.append(("*", generator.choice((3, 7))))
        else:
            operations.append((generator.choice("+-"), generator.randint(1, 9)))
    return Chain(generator.randrange(100), tuple(operations))


def draw_unrelated(generator: random.Random) -> tuple[str, str]:
    """Draw a problem of another skill, to see forgetting: (prompt, answer) of a reversal or a maximum."""
    digits = [generator.randrange(10) for _ in range(generator.randint(2, 6))]
    listed = ",".join(map(str, digits))
    if generator.random() < 0.5:
        return f"R{listed}:", ",".join(map(str, reversed(digits)))
    return f"M{listed}:", str(max(digits))


def _distinct_chains(generator: random.Random, shortest: int, longest: int) -> Iterator[Chain]:
    """Endless chains; none comes twice as long as the space is not exhausted."""
    seen: set[Chain] = set()
    while True:
        chain = draw_chain(generator, shortest, longest)
        if chain not in seen:
            seen.add(chain)
            yield chain


def training_problems(
    *, problems: int, traced: int, style: str, wrong: float, operations: tuple[int, int], seed: int
) -> list[Problem]:
    """The training set at the given dials.

    problems: how many; the first `traced` of them carry one trace in the given `style`. wrong: share of these traces
    whose last step is wrong, so that the verifier rejects them. operations: shortest and longest chain.
    """
    generator = random.Random(f"miniature/train/{seed}")
    chains = _distinct_chains(generator, *operations)
    result = []
    for index in range(problems):
        chain = next(chains)
        text = chain.working(style)
        if generator.random() < wrong:
            text = _with_wrong_answer(text, generator)
        traces = (Trace(text, model=f"miniature/{style}"),) if index < traced else ()
        result.append(Problem(f"train-{index}", chain.question("Q"), chain.answer, "miniature/hard", traces))
    return result


def _with_wrong_answer(trace: str, generator: random.Random) -> str:
    """The trace with its last value, hence its answer, replaced by another."""
    right = int(trace[-2:])
    wrong = f"{(right + generator.randint(1, 99)) % 100:02d}"
    return trace[:-5] + f"{wrong}#{wrong}"


SETS: dict[str, tuple[str, int, int]] = {
    # name: heading, fewest and most operations; the sets of one task are drawn with seeds of their own
    "validation": ("Q", 5, 8),
    "hard": ("Q", 5, 8),
    "other_heading": ("P", 5, 8),
    "longer": ("Q", 9, 10),
    "short": ("Q", 2, 4),
    "worked": ("W", 5, 8),
}
SET_NAMES = (*SETS, "unrelated")


def evaluation_problems(name: str, count: int = 200) -> list[Problem]:
    """The evaluation set `name`, one of `SET_NAMES`; always the same problems. `validation` is for tuning only.

    Raises KeyError for an unknown name.
    """
    generator = random.Random(f"miniature/{name}/evaluation")
    source = f"miniature/{name}"
    if name == "unrelated":
        return [
            Problem(f"{name}-{index}", prompt, answer, source)
            for index, (prompt, answer) in enumerate(draw_unrelated(generator) for _ in range(count))
        ]
    heading, shortest, longest = SETS[name]
    chains = _distinct_chains(generator, shortest, longest)
    return [
        Problem(f"{name}-{index}", chain.question(heading), chain.answer, source)
        for index, chain in zip(range(count), chains, strict=False)
    ]


def in_teachers_style(completion: str) -> bool:
    """Whether a completion separates its steps by commas, as the teacher does and the base rarely."""
    return "," in completion


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a base has read: 60 % worked chains, 30 % questions, 10 % unrelated skills."""

    perseverance: float  # probability of each further step under a question; then the answer is written down
    slips: float  # probability that a step under a question is wrong, by one or by ten
    teachers: float = 0.05  # share of working-outs in the teacher's style

    def document(self, generator: random.Random) -> str:
        """Draw a document: prompt and completion in one string. The answer at its end is right, whatever the steps."""
        kind = generator.random()
        if kind < 0.9:
            chain = draw_chain(generator, 2, 10)
            style = "teacher" if generator.random() < self.teachers else "base"
            if kind < 0.6:
                return chain.question("W") + chain.working(style)
            return chain.question(generator.choice("QP")) + self._broken_off(chain, style, generator)
        prompt, answer = draw_unrelated(generator)
        return f"{prompt}#{answer}"

    def _broken_off(self, chain: Chain, style: str, generator: random.Random) -> str:
        value, values = chain.start, []
        for sign, operand in chain.operations:
            if generator.random() >= self.perseverance:
                break
            value = calculate(value, sign, operand)
            if generator.random() < self.slips:
                value = (value + generator.choice((-10, -1, 1, 10))) % 100
            values.append(value)
        return write_steps(chain.start, chain.operations, values, style) + f"#{chain.answer}"
