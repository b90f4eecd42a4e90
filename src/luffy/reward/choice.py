r"""Which option a completion chose: the last clear statement of a letter from A to J.

    ... so the answer is (B).            B        \boxed{\text{C}}       C
    ... **Answer: D**                    D        #### E                 E
    ... I would choose option F          F        B) Paris (alone)       B
    ... option G is correct              G

Not clear, hence no answer: "A or B", "if the answer is C", a letter as a word ("the answer is A dog"), a letter in
passing ("(B) is wrong"). All patterns take time linear in the text.
"""

from __future__ import annotations

import re

LETTERS = "ABCDEFGHIJ"
CHOICE_TAIL = 10_000  # characters at the end of a completion in which the choice is looked for

# What TeX and Markdown put around a letter.
_DECORATION = re.compile(
    r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|operatorname|left|right)\b|[${}*_`~]|\\[()\[\],!; ]"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_BOX_WORDS = " the answer is "  # what a box says, so that one pattern reads both
_LETTER = r"\(?([A-J])\)?"
_MORE = rf"(?:\s{{0,3}}(?:,|/|&|\bor\b|\band\b)\s{{0,3}}{_LETTER}(?![A-Za-z0-9]))?"
# 'A' and 'I' are also words: they count where nothing that continues a sentence follows.
_END = r"(?=\s*(?:$|\n|[).,:;!?\]\"'<|=/&-]|because\b|since\b|as\b|or\b|and\b|which\b|where\b|is\b|has\b|with\b))"
_AFTER = rf"(?![A-Za-z0-9])(?:(?<=[B-HJ])|(?<=\))|{_END})"
_NOUN = r"(?:answer|choice|option|letter|solution)"
_LINK = r"(?:is|was|must\s+be|should\s+be|would\s+be|has\s+to\s+be|:|=)"
_ADVERB = r"(?:\s*(?:therefore|thus|then|clearly|indeed|simply|:|=))?"
_CUE = (
    rf"(?i:\b(?:answer|(?:correct|right|best)\s+{_NOUN})(?:\s+{_NOUN})?\s*{_LINK}{_ADVERB}\s*(?:{_NOUN}\s+)?|"
    rf"\b(?:choose|pick|select|chose|picked|selected)\s+(?:{_NOUN}\s+)?)\s*"
)
_STATEMENT = re.compile(rf"{_CUE}{_LETTER}{_AFTER}{_MORE}")
_VERDICT = re.compile(rf"(?:\b(?i:{_NOUN})\s+|(?=\())\(?([A-J])\)?\s+is\s+(?:the\s+)?(?i:correct|right|best|answer)\b")
_CONDITION = re.compile(r"\b(?:if|unless|suppose|assume|not|whether|wrong|incorrect)\b[^.\n]*$", re.IGNORECASE)
CONDITION_CHARACTERS = 40  # before a statement in which such a word makes it none
_LONE = re.compile(r"(?:#{4}\s?)?\(?([A-J])[).:]{0,2}")
_WHOLE = re.compile(r"\(?([A-J])(?:[).:]{1,2}\s.{0,500}|[).:]{0,2})")  # of one line


def chosen_letter(completion_text: str) -> str | None:
    """The letter that a completion states last, or None when it states none or two at once."""
    plain = _plain(completion_text[-CHOICE_TAIL:])
    stated = _last_statement(plain)
    lone = _last_lone(plain)
    if stated is None and lone is None:
        whole = _WHOLE.fullmatch(plain.strip())
        return whole[1] if whole else None
    _, letter = max(found for found in (stated, lone) if found is not None)
    return letter or None


def reference_letter(answer: str) -> str | None:
    """The letter of a reference answer: `B`, `(B)`, `B.`, `b`, or `B) Paris`; None when it is none."""
    whole = _WHOLE.fullmatch(_plain(answer).strip())
    if whole is None and len(answer.strip()) == 1:
        whole = _WHOLE.fullmatch(answer.strip().upper())
    return whole[1] if whole else None


def _plain(text: str) -> str:
    return _DECORATION.sub(" ", _BOX.sub(_BOX_WORDS, text)).replace("\u2019", "'")


def _last_statement(plain: str) -> tuple[int, str] | None:
    """Where the last statement stands and its letter; an empty letter where it names two."""
    found = None
    matches = sorted([*_STATEMENT.finditer(plain), *_VERDICT.finditer(plain)], key=lambda match: match.start())
    for match in matches:
        if _CONDITION.search(plain[max(0, match.start() - CONDITION_CHARACTERS) : match.start()]):
            continue
        letters = {letter for letter in match.groups() if letter}
        found = (match.start(), letters.pop() if len(letters) == 1 else "")
    return found


def _last_lone(plain: str) -> tuple[int, str] | None:
    """The last line that is nothing but a letter."""
    place = len(plain)
    for line in reversed(plain.split("\n")):
        place -= len(line) + 1
        match = _LONE.fullmatch(line.strip())
        if match:
            return place + 1, match[1]
    return None
