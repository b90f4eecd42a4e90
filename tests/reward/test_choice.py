import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luffy.reward import Verdict, verify
from luffy.reward.choice import LETTERS, chosen_letter, reference_letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        (" **B** \n", "B"),
        ("B) Paris", "B"),
        ("B. Paris, the capital", "B"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("The answer is: **B**", "B"),
        ("Answer: B", "B"),
        ("ANSWER: (J)", "J"),
        ("The correct answer is option D.", "D"),
        ("So the correct choice is C because it is prime.", "C"),
        ("Option G is correct.", "G"),
        ("Hence (G) is the right one.", "G"),
        ("I would choose option F.", "F"),
        ("I pick E", "E"),
        ("so \\boxed{C}", "C"),
        ("so $\\boxed{\\text{C}}$.", "C"),
        ("so \\boxed{\\textbf{(C)}}", "C"),
        ("so \\boxed{C. Paris}", "C"),
        ("Let me think.\n\nB", "B"),
        ("It is a prime.\n#### E", "E"),
        ("The answer is therefore A.", "A"),
        ("The answer is A", "A"),
        ("The answer is A because of this.", "A"),
        ("The answer is I.", "I"),
        ("Final answer: $H$", "H"),
        ("A is too small. B is too large. The answer is C.", "C"),
        ("The answer is A. No, wait: the answer is D.", "D"),  # the last one counts
        ("\\boxed{A}\nOn reflection, the answer is D.", "D"),
        ("The answer is D.\nSo \\boxed{A}", "A"),
        ("The answer is D.\n\nThis follows since (A) and (B) are wrong.", "D"),
        ("The answer is D. If the answer was C, it would be even.", "D"),
        ("The answer is D, i.e. \\boxed{42}.", "D"),
        ("The answer is B, B as in Berlin", "B"),
    ],
)
def test_last_clear_statement_of_a_letter(text, letter):
    assert chosen_letter(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        "The answer is 42.",
        "The answer is Paris.",
        "The answer is A dog.",
        "The answer is I think unclear",
        "It is (A) or (B).",
        "The answer is A or B.",
        "The answer is A, B",
        "The answer is not B.",
        "The wrong answer is B.",
        "If the answer is B, then it is even.",
        "Option B is wrong.",
        "A. 91\nB. 57\nC. 97",  # the options again
        "The answer is K.",
        "the answer is b",
        "\\boxed{42}",
        "DNA",
    ],
)
def test_what_is_no_clear_statement(text):
    assert chosen_letter(text) is None


@pytest.mark.parametrize("answer", ["C", "(C)", "C.", " c ", "C) 97", "\\text{C}", "**C**"])
def test_reference_is_a_letter_however_it_is_written(answer):
    assert reference_letter(answer) == "C"


@pytest.mark.parametrize("answer", ["", "K", "97", "Carbon", "CC", "C or D"])
def test_reference_that_is_no_letter_is_a_failure(answer):
    verdict = verify("choice", "The answer is C.", answer)
    assert not verdict.correct
    assert "is not a letter from A to J" in verdict.failure


def test_verdicts():
    assert verify("choice", "So the answer is (B).", "B") == Verdict(True, "B")
    assert verify("choice", "So the answer is (B).", "C") == Verdict(False, "B")
    assert verify("choice", "Who knows?", "C") == Verdict(False, None)


@given(st.sampled_from(LETTERS), st.text(alphabet="abc xyz,.\n", max_size=50))
def test_box_at_the_end_counts_whatever_came_before(letter, before):
    assert chosen_letter(f"{before} The answer is A. \\boxed{{{letter}}}") == letter


@given(st.text())
def test_any_text_has_a_letter_or_none(text):
    assert chosen_letter(text) in {None, *LETTERS}


@pytest.mark.parametrize(
    "text", ["answer is ", "the correct option ", "(A) ", "\\boxed{", "if ", "A or B or ", " " * 7, "answer" + " " * 50]
)
def test_hostile_completion_takes_no_time(text):
    start = time.perf_counter()
    chosen_letter(text * (100_000 // len(text)))
    assert time.perf_counter() - start < 0.5
