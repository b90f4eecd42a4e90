"""The built-in task: chains, their wording, the dials, and the corpus of the base."""

import random
import re
from collections import Counter

import pytest

from luffy.data.miniature import (
    ALPHABET,
    SET_NAMES,
    Chain,
    Corpus,
    evaluation_problems,
    in_teachers_style,
    training_problems,
)

CHAIN = Chain(17, (("+", 5), ("*", 7), ("-", 4), ("*", 3), ("-", 7)))
DIALS = {"problems": 40, "traced": 40, "style": "teacher", "wrong": 0.0, "operations": (5, 8), "seed": 0}


def calculate(text):
    """The right end of a chain such as `17+5*7`, worked out by a parser of its own."""
    value = int(text[:2])
    for sign, digit in re.findall(r"([+*-])(\d)", text[2:]):
        value = eval(f"({value}) {sign} {digit}") % 100
    return value


def test_the_example_of_the_documentation():
    assert CHAIN.question("Q") == "Q17+5*7-4*3-7:"
    assert CHAIN.working("base") == "17+5=22*7=54-4=50*3=50-7=43#43"
    assert CHAIN.working("teacher") == "17+5=22,22*7=54,54-4=50,50*3=50,50-7=43#43"
    assert [in_teachers_style(CHAIN.working(style)) for style in ("base", "teacher")] == [False, True]


def test_values_stay_between_0_and_99():
    assert Chain(3, (("-", 7), ("*", 7))).values == [96, 72]


@pytest.mark.parametrize("name", [name for name in SET_NAMES if name != "unrelated"])
def test_answers_of_the_sets_are_right(name):
    problems = evaluation_problems(name)
    assert len({problem.prompt for problem in problems}) == 200
    for problem in problems:
        assert calculate(problem.prompt[1:-1]) == int(problem.answer)


def test_sets_are_the_same_always_and_differ_from_the_training_problems():
    assert evaluation_problems("hard") == evaluation_problems("hard")
    trained = {problem.prompt for problem in training_problems(**DIALS | {"problems": 256})}
    assert len(trained) == 256
    for name in ("hard", "validation"):
        assert len(trained & {problem.prompt for problem in evaluation_problems(name)}) <= 1


def test_dials():
    problems = training_problems(**DIALS | {"traced": 10, "style": "base", "operations": (2, 3)})
    assert [len(problem.traces) for problem in problems] == [1] * 10 + [0] * 30
    assert all(2 <= len(re.findall(r"[+*-]", problem.prompt)) <= 3 for problem in problems)
    assert not any(in_teachers_style(problem.traces[0].text) for problem in problems[:10])
    assert training_problems(**DIALS) != training_problems(**DIALS | {"seed": 1})


def test_a_wrong_trace_ends_in_another_answer():
    problems = training_problems(**DIALS | {"problems": 200, "traced": 200, "wrong": 0.5})
    wrong = [problem for problem in problems if not problem.traces[0].text.endswith(f"#{problem.answer}")]
    assert 70 < len(wrong) < 130
    for problem in wrong:
        assert re.fullmatch(r".*=(\d\d)#\1", problem.traces[0].text)


def documents(count=4000, **corpus):
    generator = random.Random(0)
    drawn = [Corpus(**{"perseverance": 0.3, "slips": 0.0} | corpus).document(generator) for _ in range(count)]
    assert set("".join(drawn)) <= set(ALPHABET)
    return drawn


def test_the_corpus_works_out_under_one_heading_only():
    drawn = documents()
    counts = Counter(document[0] for document in drawn)
    assert 0.55 < counts["W"] / len(drawn) < 0.65
    assert 0.25 < (counts["Q"] + counts["P"]) / len(drawn) < 0.35
    for document in drawn:
        question, _, rest = document.partition(":")
        if document[0] in "WQP":
            assert calculate(question[1:]) == int(rest.rpartition("#")[2])  # the answer is right in any case
        if document[0] == "W":
            assert rest.count("=") == len(re.findall(r"[+*-]", question))


@pytest.mark.parametrize("perseverance", [0.0, 0.05, 0.5])
def test_working_under_a_question_goes_on_with_the_probability_given(perseverance):
    drawn = [document for document in documents(perseverance=perseverance) if document[0] in "QP"]
    begun = sum("=" in document for document in drawn)
    gone_on = sum(document.count("=") >= 2 for document in drawn)
    assert begun / len(drawn) == pytest.approx(perseverance, abs=0.05)
    assert gone_on == pytest.approx(perseverance * begun, abs=0.15 * max(begun, 1))


@pytest.mark.parametrize("slips", [0.0, 0.4])
def test_slips(slips):
    first_steps = [
        re.match(r"(\d\d[+*-]\d)=(\d\d)", document.partition(":")[2])
        for document in documents(slips=slips)
        if document[0] in "QP"
    ]
    off = [(int(step[2]) - calculate(step[1])) % 100 for step in first_steps if step]
    assert set(off) == ({0, 1, 10, 90, 99} if slips else {0})
    assert sum(map(bool, off)) / len(off) == pytest.approx(slips, abs=0.08)


def test_the_teachers_style_is_rare():
    worked = [document for document in documents(teachers=0.05) if document[0] == "W"]
    assert sum(map(in_teachers_style, worked)) / len(worked) == pytest.approx(0.05, abs=0.02)
