r"""The public sets that `luffy data prepare` knows: where each is on the hub, and how a row of it becomes a problem.

gsm8k, openai/gsm8k:
    {"question": "Natalia sold clips to 48 ...", "answer": "... 48/2 = <<48/2=24>>24 clips in May.\n...\n#### 72"}
openr1-math, open-r1/OpenR1-Math-220k:
    {"problem": "...", "answer": "180", "source": "olympiads", "uuid": "...", "generations": ["<think>\n...", ...],
     "correctness_math_verify": [true, false], "is_reasoning_complete": [true, true], ...}
math, DigitalLearningGmbH/MATH-lighteval:
    {"problem": "...", "level": "Level 5", "type": "Algebra", "solution": "... so the answer is $\boxed{2}$."}
numina, AI-MO/NuminaMath-1.5:
    {"problem": "...", "solution": "...", "answer": "5", "question_type": "math-word-problem",
     "problem_is_valid": "Yes", "solution_is_valid": "Yes", "source": "olympiads", "synthetic": false}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from luffy.config import nearest
from luffy.data.rows import RowError, kind_of
from luffy.errors import ConfigError
from luffy.reward.answers import final_answer
from luffy.types import Problem, Trace

# LUFFY keeps R1's traces of at most 8192 tokens. Its easy and hard subsets (for LLaMA-3.1-8B) are the questions that R1
# solves "within 2k" and "within 4k" tokens; the paper says neither whether 2k is 2000 or 2048 nor by which tokenizer.
PAPER_TOKENS, EASY_TOKENS, HARD_TOKENS = 8192, 2048, 4096

_CALCULATION = re.compile(r"<<[^<>]*>>")
_NO_ANSWER = ("", "proof", "notfound", "not found", "none", "n/a")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something of a row that does not come along."""

    cause: str  # the same for all that are left out for this reason
    detail: str = ""  # what it was here
    trace: int | None = None  # from 1; None: the whole row


@dataclass(frozen=True, slots=True)
class Converted:
    """What a row of a public set becomes; the traces are still to be measured and verified."""

    problem: Problem | None
    left_out: tuple[LeftOut, ...] = ()
    numbers: tuple[int, ...] = ()  # [traces] which of the row's they are, from 1; empty: all of them in their order

    def traces(self) -> list[tuple[int, Trace]]:
        """The problem's traces with their numbers in the row."""
        traces = self.problem.traces if self.problem is not None else ()
        return list(zip(self.numbers or range(1, len(traces) + 1), traces, strict=True))


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A public set of problems."""

    summary: str
    hub: str
    subset: str | None
    kind: str  # of the verifier for training on it
    convert: Callable[[Mapping[str, Any], str], Converted]  # (row, identifier) -> problem
    columns: tuple[str, ...]  # without which a file is not this set
    verified: bool = False  # its traces come with verdicts of their own, so they are not verified again
    max_tokens: int | None = None  # of a trace
    needs_trace: bool = False  # problems without any trace that is right and short enough are left out


def convert_gsm8k(row: Mapping[str, Any], identifier: str) -> Converted:
    """The human's solution without calculator marks is the trace; it ends in `#### ` and the number."""
    question, solution = _text(row, "question"), _text(row, "answer")
    working, mark, number = solution.rpartition("####")
    number = number.strip().replace(",", "")
    if not mark or not number:
        return Converted(None, (LeftOut("no final answer after ####", solution[-60:]),))
    trace = f"{_CALCULATION.sub('', working).strip()}\n#### {number}"
    return Converted(Problem(identifier, question, number, "gsm8k", (Trace(trace, "human"),)))


def convert_openr1(row: Mapping[str, Any], identifier: str) -> Converted:
    """R1's generations that are complete and that the set's own run of math-verify accepted are the traces."""
    question, answer = _text(row, "problem"), row.get("answer")
    if not isinstance(answer, str) or answer.strip().lower() in _NO_ANSWER:
        return Converted(None, (LeftOut("no checkable answer", str(answer)),))
    generations = row.get("generations") or []
    accepted = _flags(row, "correctness_math_verify", len(generations))
    complete = _flags(row, "is_reasoning_complete", len(generations))
    traces: list[tuple[int, Trace]] = []
    left_out = []
    for number, (text, right, whole) in enumerate(zip(generations, accepted, complete, strict=True), start=1):
        if not isinstance(text, str) or not text.strip():
            left_out.append(LeftOut("empty trace", trace=number))
        elif not whole:
            left_out.append(LeftOut("trace not complete", text[-60:], number))
        elif not right:
            left_out.append(LeftOut("trace verified as wrong by the set", text[-60:], number))
        else:
            traces.append((number, Trace(text, "DeepSeek-R1")))
    name, source = str(row.get("uuid") or identifier), row.get("source") or "openr1-math"
    problem = Problem(name, question, answer, source, tuple(trace for _, trace in traces))
    return Converted(problem, tuple(left_out), tuple(number for number, _ in traces))


def convert_math(row: Mapping[str, Any], identifier: str) -> Converted:
    r"""The human's solution is the trace; the answer is its last `\boxed{}`, unless the row has one of its own."""
    question, solution = _text(row, "problem"), _text(row, "solution")
    answer = row.get("answer") or _boxed(solution)
    if not answer:
        return Converted(None, (LeftOut("no boxed answer", solution[-60:]),))
    subject = str(row.get("type") or row.get("subject") or "").lower().replace(" ", "_")
    source = f"math/{subject}" if subject else "math"
    return Converted(Problem(identifier, question, str(answer), source, (Trace(solution, "human"),)))


def convert_numina(row: Mapping[str, Any], identifier: str) -> Converted:
    """Valid problems with an answer; the solution is the trace. Proofs and invalid or incomplete rows are left out."""
    question, solution = _text(row, "problem"), row.get("solution")
    for key in ("problem_is_valid", "solution_is_valid"):
        if row.get(key) not in (None, "Yes"):
            return Converted(None, (LeftOut(f"{key} is not Yes", str(row[key])),))
    if row.get("question_type") == "proof":
        return Converted(None, (LeftOut("a proof"),))
    answer = row.get("answer")
    if answer is None and isinstance(solution, str):  # NuminaMath-CoT, the version before 1.5, has no answers
        answer = _boxed(solution)
    if not isinstance(answer, str) or answer.strip().lower() in _NO_ANSWER:
        return Converted(None, (LeftOut("no checkable answer", str(answer)),))
    traces = (Trace(solution, "human"),) if isinstance(solution, str) and solution.strip() else ()
    return Converted(Problem(identifier, question, answer, str(row.get("source") or "numina"), traces))


_OPENR1 = ("open-r1/OpenR1-Math-220k", "default", "math", convert_openr1, ("problem", "answer", "generations"))

PUBLIC_SETS: dict[str, PublicSet] = {
    "gsm8k": PublicSet(
        "7,473 grade-school word problems with human solutions",
        "openai/gsm8k", "main", "number", convert_gsm8k, ("question", "answer"),
    ),
    "openr1-math": PublicSet(
        "the paper's training set: problems with right traces of DeepSeek-R1 of at most 8,192 tokens",
        *_OPENR1, verified=True, max_tokens=PAPER_TOKENS, needs_trace=True,
    ),
    "openr1-math-easy": PublicSet(
        "its easy subset: those that R1 solves within 2,048 tokens",
        *_OPENR1, verified=True, max_tokens=EASY_TOKENS, needs_trace=True,
    ),
    "openr1-math-hard": PublicSet(
        "its hard subset: those that R1 solves within 4,096 tokens, the easy ones among them",
        *_OPENR1, verified=True, max_tokens=HARD_TOKENS, needs_trace=True,
    ),
    "math": PublicSet(
        "MATH: 7,500 competition problems with human solutions",
        "DigitalLearningGmbH/MATH-lighteval", None, "math", convert_math, ("problem", "solution"),
    ),
    "numina": PublicSet(
        "NuminaMath 1.5: problems of many competitions with human solutions",
        "AI-MO/NuminaMath-1.5", None, "math", convert_numina, ("problem", "solution"),
    ),
}  # fmt: skip


def find_set(name: str) -> PublicSet:
    """The public set of a name. Raises ConfigError naming the nearest one."""
    if name not in PUBLIC_SETS:
        known = (*PUBLIC_SETS, "miniature", "reasoning-gym:TASK")
        raise ConfigError(f"unknown set {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    return PUBLIC_SETS[name]


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{key!r} must be text, got {'an empty string' if value == '' else kind_of(value)}")
    return value


def _flags(row: Mapping[str, Any], key: str, count: int) -> list[bool]:
    """A verdict for each generation; nothing is accepted where the set says nothing."""
    values = row.get(key)
    if not isinstance(values, list) or len(values) != count:
        given = len(values) if isinstance(values, list) else kind_of(values)
        raise RowError(f"{key!r} must be a list with a truth value for each of the {count} generations, got {given}")
    return [value is True for value in values]


def _boxed(solution: str) -> str | None:
    return final_answer(solution) if "\\boxed" in solution else None
