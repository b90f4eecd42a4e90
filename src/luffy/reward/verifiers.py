r"""The kinds of verifier: what each takes for the final answer, and how it compares.

    kind     final answer                                                    compared
    exact    after the last run of '#', else the last \boxed{}, else all     as stripped text
    number   the same, but lacking both the last number of the text          as exact numbers
    math     in the last \boxed{} (or those joined to it), else found by math-verify                 as mathematics
    choice   the last clear statement of a letter A to J (`choice`)          as letters
    reasoning_gym   in the last <answer>, else \boxed{}, else after ####     by the task's own scorer (`procedural`)
    python:package.module:function                                           by your function

A gate on the format can come before each of them: with one, only what follows the end marker of the thought is graded,
and a completion without the marker is wrong.

A verifier takes the completion's text and the reference answer. A completion that was cut off must not be verified:
it has no final answer; that is the caller's to know.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, overload

from luffy.errors import ConfigError
from luffy.formats import CompletionFormat
from luffy.reward.answers import boxed_answers, final_answer, final_numeral, numeral_value, reference_numeral
from luffy.reward.choice import chosen_letter, reference_letter
from luffy.reward.procedural import score_reasoning_gym

MATH_TAIL = 10_000  # characters at the end of a completion in which `math` looks for a box
UNBOXED_TAIL = 2_000  # characters at its end in which math-verify looks for another answer, in more than linear time
DEEPEST_MATH = 15  # brackets inside each other that `math` reads (the six benchmarks: 4); it takes exponential time
LONGEST_MATH = 1_000  # characters of an answer that `math` reads; the longest in the six benchmarks has 210
SMALL, SMALL_TOLERANCE = 1e-3, 1e-3  # numbers below it are compared relatively, by `math`
SHOWN_CHARACTERS = 200  # of an extracted answer that a verdict carries
OUT_OF_MEMORY = "memory"  # the failure of a verification that took more than its worker may take
SCORE_TOLERANCE = 1e-9  # below the threshold: scores are sums of floats

_SCIENTIFIC = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})")
_BRACKET = re.compile(r"[\[({\])}]")
_DOLLAR = re.compile(r"(?<!\\)\$")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier found out about one completion."""

    correct: bool  # the final answer is the reference answer
    extracted: str | None  # the final answer as the verifier understood it, shortened; None: there is none
    failure: str | None = None  # why there is no real one: 'timeout', 'memory', 'crash', 'error: ...'; never correct


Verifier = Callable[[str, str], Verdict]  # (text of the completion, reference answer)
RewardFunction = Callable[[str, str], Any]  # a user's: (text of the completion, reference answer) -> bool, or 1 or 0


def verify_exact(completion_text: str, answer: str) -> Verdict:
    """Compare the final answer with the reference as text, white space around them aside."""
    extracted = final_answer(completion_text)
    extracted = completion_text.strip() if extracted is None else extracted
    return Verdict(extracted == answer.strip(), _shown(extracted))


def verify_number(completion_text: str, answer: str) -> Verdict:
    """Compare the final number with the reference as exact numbers: 1,000.0 is 1000, 0.5 is 1/2, $18 is 18.

    A reference that is no number is a mistake in the data, hence a failure and not a wrong answer.
    """
    reference = reference_numeral(answer)
    expected = numeral_value(reference) if reference is not None else None
    if expected is None:
        return Verdict(False, None, f"error: the reference answer {_shown(answer)!r} is not a number")
    numeral = final_numeral(completion_text)
    value = numeral_value(numeral) if numeral is not None else None
    return Verdict(value == expected, _shown(numeral))


def verify_math(completion_text: str, answer: str) -> Verdict:
    """Compare the final answer with the reference as mathematics, by math-verify.

    It has no time limit of its own: that of math-verify works by SIGALRM, which fails outside the main thread. Its
    parser and sympy can take very long on odd input, so run it in a `VerifierPool`, whose deadline holds anywhere.
    """
    from math_verify import parse
    from math_verify import verify as equal

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that there is no time limit
    expected = next(filter(None, (parse(form, parsing_timeout=None) for form in _forms(answer))), None)
    if not expected:
        return Verdict(False, None, f"error: math-verify cannot read the reference answer {_shown(answer)!r}")
    tail = completion_text[-MATH_TAIL:].replace("\\fbox", "\\boxed")
    boxed = boxed_answers(tail)
    if boxed and sum(map(len, boxed)) > max(LONGEST_MATH, 2 * len(answer)):
        return Verdict(False, _shown(boxed[-1]))
    given = f"\\boxed{{{', '.join(map(_readable, boxed))}}}" if boxed else tail[-UNBOXED_TAIL:]
    if _depth(given) > DEEPEST_MATH:
        return Verdict(False, _shown(boxed[-1]) if boxed else None)
    found = parse(given, parsing_timeout=None)
    correct = bool(found) and bool(equal(expected, found, timeout_seconds=None)) and not _differ_below(expected, found)
    return Verdict(correct, _shown(next((item for item in reversed(found) if isinstance(item, str)), None)))


def _differ_below(expected: list[Any], found: list[Any]) -> bool:
    """Whether both are small numbers and not the same: math-verify rounds to six decimals and takes 1e-27 for 1e-19."""
    one, other = _small_value(expected), _small_value(found)
    return one is not None and other is not None and abs(one - other) > SMALL_TOLERANCE * max(abs(one), abs(other))


def _small_value(parsed: list[Any]) -> float | None:
    """The value of the first thing parsed, if it is a real number close to 0."""
    first = parsed[0]
    if not getattr(first, "is_number", False) or not getattr(first, "is_real", False):
        return None
    value = float(first)
    return value if abs(value) < SMALL else None


def _forms(answer: str) -> Iterator[str]:
    """A reference answer in the forms that math-verify may be able to read, the likeliest first."""
    answer = _readable(answer)
    dollars = len(_DOLLAR.findall(answer))
    without = _DOLLAR.sub("", answer)
    if dollars % 2 and dollars > 1:  # '$221,$8$': the signs do not enclose anything; a single one is a currency
        yield f"\\boxed{{{without}}}"
    marked = dollars > 1 or "\\boxed" in answer
    yield answer if marked else f"\\boxed{{{answer}}}"
    if marked:
        yield f"\\boxed{{{without}}}"


def _depth(text: str) -> int:
    """How deep the brackets of a text are nested, those that never close included."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _readable(answer: str) -> str:
    """An answer with what math-verify takes for something else: 1.6e-19 is not 1.6 times Euler's number less 19."""
    numeral = _SCIENTIFIC.fullmatch(answer.strip())
    if numeral:
        return rf"{numeral[1]} \times 10^{{{numeral[2]}}}"
    return answer.replace(r"\varnothing", r"\emptyset")


def verify_choice(completion_text: str, answer: str) -> Verdict:
    """Compare the option that a completion states last with the reference letter, from A to J."""
    expected = reference_letter(answer)
    if expected is None:
        return Verdict(False, None, f"error: the reference answer {_shown(answer)!r} is not a letter from A to J")
    letter = chosen_letter(completion_text)
    return Verdict(letter == expected, letter)


def verify_reasoning_gym(completion_text: str, answer: str, *, threshold: float = 1.0) -> Verdict:
    """Score by the task that the reference names; correct from `threshold` on. See `luffy.reward.procedural`."""
    score, given = score_reasoning_gym(completion_text, answer)
    return Verdict(score >= threshold - SCORE_TOLERANCE, _shown(given))


VERIFIERS: dict[str, Verifier] = {
    "exact": verify_exact,
    "number": verify_number,
    "math": verify_math,
    "choice": verify_choice,
    "reasoning_gym": verify_reasoning_gym,
}


def verify(
    kind: str | RewardFunction,
    completion_text: str,
    answer: str,
    *,
    gate: CompletionFormat | None = None,
    threshold: float = 1.0,
) -> Verdict:
    """Verify one completion in this process, without a deadline.

    kind: a name in `VERIFIERS`, `python:package.module:function`, or a function (completion_text, answer) -> bool.
    gate: grade only what follows the closing tag of this format; without the tag a completion is wrong.
    threshold: in (0, 1], the score from which an answer of a reasoning_gym task is correct.
    A function that raises gives a verdict with a failure. Raises ConfigError for an unknown kind.
    """
    return grade(resolve_verifier(kind, gate=gate, threshold=threshold), completion_text, answer)


def grade(verifier: Verifier, completion_text: str, answer: str) -> Verdict:
    """The verdict of a verifier, or what it raised as the failure of a verdict."""
    try:
        return verifier(completion_text, answer)
    except MemoryError:
        return Verdict(False, None, OUT_OF_MEMORY)
    except (Exception, SystemExit) as error:
        return Verdict(False, None, _shown(f"error: {type(error).__name__}: {error}".removesuffix(": ")))


def resolve_verifier(
    kind: str | RewardFunction, *, gate: CompletionFormat | None = None, threshold: float = 1.0
) -> Verifier:
    """The verifier of a kind, behind the gate if there is one; the arguments are those of `verify`.

    Raises ConfigError naming the nearest kind, or what a `python:` kind lacks.
    """
    verifier = _verifier_of(kind)
    if verifier is verify_reasoning_gym:
        verifier = functools.partial(verify_reasoning_gym, threshold=threshold)
    return verifier if gate is None else functools.partial(_verify_gated, gate, verifier)


def _verify_gated(gate: CompletionFormat, verifier: Verifier, completion_text: str, answer: str) -> Verdict:
    graded = gate.answer_part(completion_text)
    return Verdict(False, None) if graded is None else verifier(graded, answer)


def _verifier_of(kind: str | RewardFunction) -> Verifier:
    if callable(kind):
        return functools.partial(_verify_by_function, kind)
    if kind in VERIFIERS:
        return VERIFIERS[kind]
    if kind.startswith("python:"):
        return functools.partial(_verify_by_function, _import_function(kind))
    from luffy.config import nearest

    known = ", ".join(VERIFIERS)
    raise ConfigError(
        f"reward.kind: unknown verifier {kind!r}.{nearest(kind, VERIFIERS)} "
        f"Known: {known}, or your own function as python:package.module:function."
    )


def _verify_by_function(function: RewardFunction, completion_text: str, answer: str) -> Verdict:
    reward = function(completion_text, answer)
    if reward in (True, False):  # also 1, 0, 1.0, and the booleans of numpy
        return Verdict(bool(reward), None)
    return Verdict(False, None, _shown(f"error: the reward function returned {reward!r}, expected True, False, 1 or 0"))


@functools.cache
def _import_function(kind: str) -> RewardFunction:
    """The function that `python:package.module:function` names; modules in the current folder are found too."""
    from luffy.config import nearest

    module_name, separator, name = kind.removeprefix("python:").partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"reward.kind: {kind!r} is not of the form python:package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(f"reward.kind: cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if function is None:
        hint = nearest(name, (known for known in vars(module) if callable(getattr(module, known))))
        raise ConfigError(f"reward.kind: {module_name!r} has no function {name!r}.{hint}")
    if not callable(function):
        raise ConfigError(f"reward.kind: {name!r} of {module_name!r} is not a function.")
    return function  # type: ignore[no-any-return]


@overload
def _shown(text: str) -> str: ...
@overload
def _shown(text: str | None) -> str | None: ...
def _shown(text: str | None) -> str | None:
    """The text, shortened to what a message or a table can show."""
    if text is None or len(text) <= SHOWN_CHARACTERS:
        return text
    return text[: SHOWN_CHARACTERS - 1] + "…"
