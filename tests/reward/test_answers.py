import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luffy.reward.answers import final_answer, final_numeral, numeral_value, reference_numeral


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17+5=22#22", "22"),
        ("so it is 72.\n#### 72", "72"),
        ("#### 72\n", "72"),
        ("## Solution\nwe get \\boxed{7}", "7"),  # the marker that comes last counts
        ("\\boxed{7} or rather #### 8", "8"),
        ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1}, no, \\boxed{2}", "2"),
        ("\\boxed {3}", "3"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("unclosed \\boxed{3", None),
        ("#1 then \\boxed{3", "1 then \\boxed{3"),
        ("no marker", None),
        ("", None),
        ("ends in #", ""),
    ],
)
def test_final_answer_is_after_the_last_marker(text, expected):
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 1,234.50", Fraction(2469, 2)),
        ("#### $18", 18),
        ("#### \\$18.00 ", 18),
        ("#### 18 dollars per day.", 18),
        ("#### **18**", 18),
        ("#### 50%", 50),
        ("#### -3", -3),
        ("#### −3", -3),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("#### .5", Fraction(1, 2)),
        ("#### 1e3", 1000),
        ("#### x = 5", 5),
        ("#43", 43),
        ("#07", 7),
        ("\\boxed{\\frac{1}{2}}", Fraction(1, 2)),
        ("\\boxed{\\dfrac{3}{6}}", Fraction(1, 2)),
        ("\\boxed{12\\text{ cm}^2}", 12),
        ("\\boxed{1{,}000}", 1000),
        ("\\boxed{10\\,000}", 10000),
        ("the answer is 3/4.", Fraction(3, 4)),
        ("first 5, then 10-3", 3),
        ("It is 1,234,567.", 1234567),
        ("H2O weighs 18 u", 18),
    ],
)
def test_number_at_the_end_of_a_completion(text, expected):
    numeral = final_numeral(text)
    assert numeral is not None
    assert numeral_value(numeral) == expected


@pytest.mark.parametrize(
    "text",
    [
        "#### 5 apples and 3 pears",
        "\\boxed{2x}",
        "\\boxed{\\sqrt{2}}",
        "\\boxed{2\\pi}",
        "\\boxed{2^{10}}",
        "\\boxed{(1,2)}",
        "#### ",
        "no number here",
        "",
    ],
)
def test_formulas_and_lists_are_not_a_number(text):
    assert final_numeral(text) is None


@pytest.mark.parametrize("numeral", ["1/0", "1/0.0", "1e999999999", "1e-999999999", "9" * 1001, "1e" + "9" * 5000, "x"])
def test_numerals_without_a_usable_value(numeral):
    assert numeral_value(numeral) is None


def test_reference_may_be_a_whole_solution():
    assert reference_numeral("48/2 = 24 clips\n#### 72") == "72"
    assert reference_numeral("72") == "72"
    assert reference_numeral("either 72 or 73") is None


@given(st.integers())
def test_integer_is_read_however_it_is_written(integer):
    for written in (f"{integer}", f"{integer:,}", f"{integer}.", f"{integer}.00", f"{integer}%", f"{integer}/1"):
        assert numeral_value(final_numeral(f"#### {written}")) == integer
        assert numeral_value(final_numeral(f"so we get {written}")) == integer


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12))
def test_decimal_is_read_exactly(decimal):
    assert numeral_value(f"{decimal:f}") == Fraction(decimal)
    assert numeral_value(f"{decimal:e}") == Fraction(decimal)


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_fraction_is_read_exactly(numerator, denominator):
    assert numeral_value(f"{numerator}/{denominator}") == Fraction(numerator, denominator)


@given(st.text())
def test_any_text_has_an_answer_or_none(text):
    for completion in (text, f"#### {text}", f"\\boxed{{{text}}}"):
        numeral = final_numeral(completion)
        if numeral is not None:
            numeral_value(numeral)


HOSTILE = {
    "open braces": "\\boxed" + "{" * 100_000,
    "close braces": "\\boxed{" + "}" * 100_000,
    "many boxes": "\\boxed{" * 20_000,
    "deep nesting": "\\boxed" + "{" * 50_000 + "1" + "}" * 50_000,
    "hashes": "#" * 100_000,
    "digits": "1" * 100_000,
    "marked digits": "#### " + "1" * 100_000,
    "commas": "#### " + "111," * 30_000,
    "groups that fail": "111," * 30_000 + "1",
    "dollars": "#### " + "$" * 100_000 + "5",
    "spaces": "#### " + " " * 100_000 + "5",
    "spaced dollars": "$ " * 50_000 + "5",
    "signs": "#### " + "-" * 100_000,
    "fractions": "1/" * 50_000,
    "fracs": "#### " + "\\frac{1}{" * 10_000,
    "units": "#### " + "\\text{" * 20_000,
    "powers": "9**" * 30_000 + "9",
    "exponents": "#### 1e" + "9" * 100_000,
    "dots": "#### 1" + "." * 100_000,
    "control characters": "#### " + "\x00\x1b\x07" * 30_000,
    "words": "#### " + "a " * 50_000,
    "letters": "#### 1" + "a" * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_completion_takes_no_time(text):
    start = time.perf_counter()
    numeral = final_numeral(text)
    if numeral is not None:
        numeral_value(numeral)
    assert time.perf_counter() - start < 0.5
