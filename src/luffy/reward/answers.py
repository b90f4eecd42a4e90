r"""Find the final answer in a completion, and read it as an exact number.

    ...so 48 + 24 = 72.\n#### 72         '72'      after the last run of '#'
    ...hence \boxed{\frac{1}{2}}.        '\frac{1}{2}'
    ...the answer is 72.                 no marker

Completions are hostile input: every function here takes time linear in the length of its text, and numbers beyond
`MAX_DIGITS` digits or powers of ten beyond `MAX_EXPONENT` are not numbers.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 1000  # of one numeral; Python itself refuses to read more than 4300
MAX_EXPONENT = 1000  # of ten; 1e999999999 would fill the memory

MAX_JOINED_BOXES = 50  # of one answer; a box with another inside counts as one
MAX_JOIN_CHARACTERS = 40  # between two boxes of one answer

_BOXED = "\\boxed"
_JOINS = re.compile(r"\s*\$*\s*(?:,|;|and|or|,\s*(?:and|or))\s*\$*\s*")
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_NUMERAL = re.compile(
    r"(?:(?<![0-9A-Za-z.)\]}])(?P<sign>[-+]))?(?:\$\s?)?"  # the '-' of '10-3' is not a sign
    rf"(?<![0-9A-Za-z_])(?P<value>{_DECIMAL})(?:\s?/\s?(?P<divisor>{_DECIMAL}))?%?"
)
_PLAIN_FRACTION = re.compile(r"\\[dt]?frac\{([0-9.,]{1,100})\}\{([0-9.,]{1,100})\}")
_UNIT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{[^{}\\0-9]{0,100}\}(?:\^\{?[0-9]\}?)?")
_WORDS_ONLY = re.compile(r"[A-Za-z\s$%.,:;=()\[\]{}'\"!?°€£-]*")
_SYMBOL_AFTER = re.compile(r"[A-Za-z](?![A-Za-z])")  # the x of '2x', unlike the kg of '2kg'


def final_answer(text: str) -> str | None:
    r"""The text after the last run of `#`, or the content of the last `\boxed{}` where that comes later; else None."""
    hash_mark, boxed = text.rfind("#"), text.rfind(_BOXED)
    if boxed > hash_mark:
        content = _boxed_content(text, boxed + len(_BOXED))
        if content is not None:
            return content.strip()
    return text[hash_mark + 1 :].strip() if hash_mark >= 0 else None


def boxed_answers(text: str) -> list[str]:
    r"""The contents of the last `\boxed{}` and of those joined to it as one answer: `\boxed{1} and $\boxed{2}$`.

    In the order of the text; boxes that were abandoned earlier do not count. None that close: an empty list.
    """
    contents: list[str] = []
    after = len(text)  # where what stands after a box ends: the next box, or the end of the text
    place = text.rfind(_BOXED)
    for _ in range(MAX_JOINED_BOXES):
        if place < 0:
            break
        content = _boxed_content(text, place + len(_BOXED))
        if content is None:  # left open: as if it was not there
            place = text.rfind(_BOXED, 0, place)
            continue
        between = text[text.index(content, place) + len(content) + 1 : after]
        if contents and not _JOINS.fullmatch(between[:MAX_JOIN_CHARACTERS]):
            break
        contents.insert(0, content)
        after, place = place, text.rfind(_BOXED, 0, place)
    return contents


def _boxed_content(text: str, start: int) -> str | None:
    """What stands in the balanced braces that open at `start`; None when they never close."""
    while start < len(text) and text[start] == " ":
        start += 1
    if not text.startswith("{", start):
        return None
    depth = 0
    for index in range(start, len(text)):
        character = text[index]
        if character in "{}" and text[index - 1] != "\\":  # \{ and \} are characters of the answer, not braces
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start + 1 : index]
    return None


def final_numeral(text: str) -> str | None:
    """The number that a completion ends in, as written: that of its final answer, else the last one in the text.

    A final answer may hold words around its number ('18 dollars') but only one number, and no formula ('2x').
    """
    answer = final_answer(text)
    return _only_numeral(answer) if answer is not None else _last_numeral(text)


def reference_numeral(answer: str) -> str | None:
    """The number of a reference answer, as written; None when it is not one number."""
    marked = final_answer(answer)
    return _only_numeral(answer if marked is None else marked)


def numeral_value(numeral: str) -> Fraction | None:
    """The exact value of a numeral; currency and percent signs do not count, so '50%' is 50.

    None for what is not a number: a division by zero, or more digits than `MAX_DIGITS`.
    """
    match = _NUMERAL.fullmatch(numeral)
    if match is None:
        return None
    value = _decimal_value(match["value"])
    divisor = _decimal_value(match["divisor"]) if match["divisor"] else Fraction(1)
    if value is None or not divisor:
        return None
    return (-value if match["sign"] == "-" else value) / divisor


def _decimal_value(decimal: str) -> Fraction | None:
    digits, _, exponent = decimal.replace(",", "").lower().partition("e")
    if len(digits) > MAX_DIGITS or len(exponent) > 10 or abs(int(exponent or 0)) > MAX_EXPONENT:
        return None
    whole, _, decimals = digits.partition(".")
    return Fraction(int(whole + decimals)) * Fraction(10) ** (int(exponent or 0) - len(decimals))


def _only_numeral(answer: str) -> str | None:
    answer = _plain(answer)
    matches = _NUMERAL.finditer(answer)
    match = next(matches, None)
    if match is None or next(matches, None) is not None:
        return None
    around = answer[: match.start()] + " " + answer[match.end() :]
    if _SYMBOL_AFTER.match(answer, match.end()) or not _WORDS_ONLY.fullmatch(around):
        return None
    return match[0]


def _last_numeral(text: str) -> str | None:
    """The last number of a text, searched from its end, since completions can be long."""
    end = max(text.rfind(digit) for digit in "0123456789") + 1
    if end == 0:
        return None
    start = max(0, end - 4 * MAX_DIGITS)
    numerals = [match[0] for match in _NUMERAL.finditer(_plain(text[start : end + 2]))]
    return numerals[-1] if numerals else None


def _plain(text: str) -> str:
    """The text without the decorations that TeX and Markdown put on numbers."""
    for decorated, plain in (("\\!", ""), ("\\,", ""), ("\\$", "$"), ("\\%", "%"), ("{,}", ","), ("−", "-")):
        text = text.replace(decorated, plain)
    text = _PLAIN_FRACTION.sub(r"\1/\2", text)
    text = _UNIT.sub(" ", text)
    return text.replace("**", "").replace("`", "").strip()
