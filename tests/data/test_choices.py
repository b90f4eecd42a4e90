from collections import Counter

import pytest

from luffy.data import choice_problem
from luffy.errors import DataError
from luffy.reward import verify

OPTIONS = ["91", "57", "97", "51"]


def build(options=OPTIONS, correct=2, seed=0, problem_id="p", **others):
    return choice_problem(problem_id, "Which is a prime?", options, correct=correct, seed=seed, **others)


def test_unshuffled_problem_word_for_word():
    problem = build(seed=None, source="primes")
    assert problem.prompt == (
        "Which is a prime?\n\nA. 91\nB. 57\nC. 97\nD. 51\n\nAnswer with the letter of the correct option."
    )
    assert (problem.answer, problem.source) == ("C", "primes")


@pytest.mark.parametrize("seed", range(20))
def test_answer_follows_the_correct_option_through_the_shuffle(seed):
    problem = build(seed=seed)
    assert f"{problem.answer}. 97" in problem.prompt
    assert all(option in problem.prompt for option in OPTIONS)
    assert verify("choice", f"so \\boxed{{{problem.answer}}}", problem.answer).correct


def test_order_depends_on_seed_and_id_alone():
    assert build() == build()
    assert len({build(seed=seed).prompt for seed in range(30)}) > 10
    assert len({build(problem_id=f"p{number}").prompt for number in range(30)}) > 10


def test_no_letter_is_favoured():
    letters = Counter(build(problem_id=f"p{number}").answer for number in range(2000))
    assert set(letters) == set("ABCD")
    assert max(letters.values()) - min(letters.values()) < 130  # about five standard deviations


@pytest.mark.parametrize(
    "reference",
    ["None of the above", "all of the above", "Both A and B", "Neither A nor C", "Both of these", "Options A and D"],
)
def test_options_that_refer_to_each_other_stay_where_they_are(reference):
    for seed in range(10):
        problem = build([*OPTIONS[:3], reference], seed=seed)
        assert problem.answer == "C"
        assert problem.prompt.index("91") < problem.prompt.index("57") < problem.prompt.index("97")


@pytest.mark.parametrize(
    ("options", "correct", "message"),
    [
        (["1"], 0, "has 1 options, expected 2 to 10"),
        ([str(number) for number in range(11)], 0, "has 11 options, expected 2 to 10"),
        (OPTIONS, 4, r"the correct option is number 4 \(from 0\) of 4"),
        (OPTIONS, -1, "the correct option is number -1"),
        (["97", "57", "97"], 2, "the correct option '97' comes twice"),
    ],
)
def test_options_that_make_no_problem_are_refused(options, correct, message):
    with pytest.raises(DataError, match=f"problem 'p': {message}"):
        build(options, correct)
