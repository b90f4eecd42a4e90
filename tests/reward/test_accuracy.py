"""How good the verifier `math` is, and what hostile completions do to it: parts of benchmarks/verifiers.py as tests."""

import itertools
import os
from pathlib import Path

import pytest
from hostile import FAMILIES, hostile_completions
from verifiers import gold_answers, read_pairs, verdicts

from luffy.reward import VerifierPool

# Of the hand-made pairs; docs/verifiers.md lists those that it gets wrong. Raise it when a change makes more right.
RIGHT_PAIRS = 190
PAIRS = list(read_pairs())


def test_pairs_are_many_and_of_every_sort():
    assert len(PAIRS) >= 150
    assert len({(answer, text) for _, answer, text, _ in PAIRS}) == len(PAIRS)
    assert min(sum(equal for *_, equal in PAIRS), sum(not equal for *_, equal in PAIRS)) >= 60
    categories = {category for category, *_ in PAIRS}
    assert {"fractions", "sets", "intervals", "units", "percentages", "tuples and points", "nested boxes"} <= categories
    assert {"several boxes", "no answer", "text after the answer"} <= categories


def test_math_is_right_about_the_pairs():
    found = verdicts("math", [(text, answer) for _, answer, text, _ in PAIRS], deadline=20)
    assert [verdict.failure for verdict in found if verdict.failure] == []
    wrong = [pair for pair, verdict in zip(PAIRS, found, strict=True) if verdict.correct != pair[3]]
    assert len(PAIRS) - len(wrong) >= RIGHT_PAIRS, wrong


@pytest.mark.parametrize("category", ["several boxes", "no answer", "text after the answer", "fractions"])
def test_math_is_right_about_every_pair_of(category):
    pairs = [pair for pair in PAIRS if pair[0] == category]
    found = verdicts("math", [(text, answer) for _, answer, text, _ in pairs], deadline=20)
    assert [pair for pair, verdict in zip(pairs, found, strict=True) if verdict.correct != pair[3]] == []


def test_reference_answers_of_the_six_math_sets_verify():
    folder = os.environ.get("LUFFY_PUBLIC_DATA")
    if not folder:
        pytest.skip("LUFFY_PUBLIC_DATA names no folder of public sets (with benchmarks/math_six.parquet)")
    pytest.importorskip("pyarrow")
    sets = gold_answers(Path(folder, "benchmarks/math_six.parquet"))
    assert sum(map(len, sets.values())) == 1590
    answers = list(itertools.chain(*sets.values()))
    found = verdicts("math", [(f"so it is $\\boxed{{{answer}}}$.", answer) for answer in answers], deadline=20)
    assert [answer for answer, verdict in zip(answers, found, strict=True) if not verdict.correct] == []


@pytest.mark.parametrize("kind", ["exact", "number", "choice", "reasoning_gym"])
def test_hostile_completions_get_verdicts_from_the_fast_kinds(kind):
    reference = {"choice": "B", "reasoning_gym": '{"task": "countdown", "answer": "1", "metadata": {"target": 1}}'}
    completions = list(hostile_completions(len(FAMILIES)))
    with VerifierPool(kind, workers=1, deadline=5) as pool:
        found = pool.verify_all([(text, reference.get(kind, "5")) for _, text, _ in completions])
    assert {verdict.failure for verdict in found} <= {None, "timeout"}


def check_hostile(count, deadline):
    completions = list(hostile_completions(count))
    found = verdicts("math", [(text, answer) for _, text, answer in completions], deadline)
    assert len(found) == count
    assert {verdict.failure for verdict in found} <= {None, "timeout", "memory"}
    assert verdicts("math", [("\\boxed{5}", "5")])[0].correct


def test_hostile_completions_neither_hang_nor_crash_workers():
    check_hostile(len(FAMILIES), deadline=0.5)


@pytest.mark.slow
def test_ten_thousand_hostile_completions():
    check_hostile(10_000, deadline=1.0)


def test_hostile_completions_are_the_same_for_the_same_seed():
    assert list(hostile_completions(60)) == list(hostile_completions(60))
    assert {name for name, *_ in hostile_completions(len(FAMILIES))} == set(FAMILIES)
    assert max(len(text) for _, text, _ in hostile_completions(500)) > 80_000
