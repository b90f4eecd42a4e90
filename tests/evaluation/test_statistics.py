"""Intervals against closed forms, tables and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luffy.evaluation.statistics import (
    Interval,
    mean_interval,
    means_interval,
    paired_difference,
    pass_at_k,
    seeds_difference,
    seeds_interval,
    student_quantile,
    wilson,
)


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),  # printed tables of Student's t
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.95, 10, 1.812),
        (0.975, 199, 1.972),
        (0.995, 30, 2.75),
    ],
)
def test_student_quantile_agrees_with_the_tables(probability, degrees, expected):
    assert student_quantile(probability, degrees) == pytest.approx(expected, abs=6e-4)


def test_student_quantile_grows_with_fewer_degrees():
    values = [student_quantile(0.975, d) for d in (1.0, 1.5, 2.2, 4.4, 60.0)]
    assert values == sorted(values, reverse=True)


def test_wilson_solves_its_defining_equation():
    for share, n in [(0.3, 50), (0.01, 200), (0.5, 7)]:
        for end in wilson(share, n):
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)


@pytest.mark.parametrize("solved", [False, True])
@pytest.mark.parametrize("samples", [1, 4])
def test_agreement_of_all_problems_is_not_certainty(solved, samples):
    interval = mean_interval([[solved] * samples] * 200)
    assert interval.value == float(solved)
    assert interval.high - interval.low == pytest.approx(1.959964**2 / (200 + 1.959964**2), rel=1e-5)


def test_means_alone_give_wilson_for_one_seed_and_never_less_than_the_problems_would():
    alone = means_interval([0.6], 100)
    assert (alone.low, alone.high) == pytest.approx((0.5020, 0.6906), abs=1e-4)  # any textbook's 60 of 100
    generator = np.random.default_rng(0)
    for share in (0.05, 0.4, 0.9):
        rows = generator.random((3, 80)) < generator.beta(8 * share, 8 * (1 - share), 80)
        full, kept = seeds_interval(rows), means_interval(rows.mean(axis=1), 80)
        assert kept.value == pytest.approx(full.value)
        assert kept.low <= full.low + 0.01  # the bootstrap's own noise
        assert kept.high >= full.high - 0.01


def test_means_alone_follow_the_formula_and_stay_in_the_range():
    """The seeds' variance 0.0018 / 2 with one degree, the problems' 0.53 * 0.47 / 99 with 99; Satterthwaite."""
    found = means_interval([0.50, 0.56], 100)
    seeds, problems = 0.0009, 0.2491 / 99
    degrees = (seeds + problems) ** 2 / (seeds**2 / 1 + problems**2 / 99)
    half = student_quantile(0.975, round(degrees, 3)) * math.sqrt(seeds + problems)
    assert (found.low, found.high) == pytest.approx((0.53 - half, 0.53 + half))
    far = means_interval([0.4, 0.6], 100)
    assert (far.low, far.high, far.n) == (0.0, 1.0, 100)  # two seeds this far apart say nothing
    near = means_interval([0.5, 0.5], 100)  # no spread of the seeds: that of the problems alone, 99 degrees
    assert near.high - 0.5 == pytest.approx(1.984 * math.sqrt(0.25 / 99), rel=1e-3)
    for means, problems in (([], 10), ([0.5], 0)):
        with pytest.raises(ValueError, match="at least one"):
            means_interval(means, problems)


def test_one_sample_a_problem_is_wilson():
    interval = mean_interval([[True]] * 60 + [[False]] * 40)
    assert (interval.low, interval.high) == pytest.approx((0.5020, 0.6906), abs=1e-4)  # any textbook's 60 of 100
    assert interval.to_json() == {"value": 0.6, "low": interval.low, "high": interval.high, "n": 100}


def test_samples_of_one_problem_are_not_independent():
    """8 equal samples a problem say no more than one; 8 independent ones say as much as eight problems."""
    generator = np.random.default_rng(0)
    repeated = np.repeat(generator.random((100, 1)) < 0.5, 8, axis=1).tolist()
    independent = (generator.random((100, 8)) < 0.5).tolist()
    wide, narrow = mean_interval(repeated), mean_interval(independent)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 100), rel=0.1)
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 800), rel=0.25)


def test_every_problem_counts_the_same():
    assert mean_interval([[True], [False] * 9]).value == 0.5


def test_pass_at_k_equals_enumeration():
    samples = [True, False, False, True, False]
    for k in range(1, 6):
        chosen = list(itertools.combinations(samples, k))
        expected = sum(any(subset) for subset in chosen) / len(chosen)
        assert pass_at_k([samples], k).value == pytest.approx(expected)


def test_pass_at_one_is_the_mean_and_grows_with_k():
    correct = (np.random.default_rng(1).random((30, 6)) < 0.3).tolist()
    assert pass_at_k(correct, 1).value == pytest.approx(mean_interval(correct).value)
    values = [pass_at_k(correct, k).value for k in range(1, 7)]
    assert values == sorted(values)


def test_what_cannot_be_computed_is_refused():
    for call in (
        lambda: mean_interval([]),
        lambda: mean_interval([[True], []]),
        lambda: pass_at_k([[True, False]], 3),
        lambda: seeds_interval([0.1, 0.2]),
        lambda: paired_difference([[0.0, 1.0]], [[0.0]]),
    ):
        with pytest.raises(ValueError, match=r"needs|expected|share"):
            call()


def test_intervals_are_deterministic_and_depend_on_the_seed():
    generator = np.random.default_rng(2)
    a, b = generator.random((3, 80)), generator.random((3, 80))
    assert paired_difference(a, b) == paired_difference(a, b)
    samples = (generator.random((50, 4)) < 0.4).tolist()
    assert mean_interval(samples) == mean_interval(samples)
    assert mean_interval(samples).low != mean_interval(samples, resamples=200, seed=5).low


def test_one_seed_covers_problems_only():
    row = (np.random.default_rng(3).random(120) < 0.4).astype(float)
    assert seeds_interval(row[None]) == mean_interval([[bool(x)] for x in row])


def test_few_seeds_that_disagree_give_a_wide_interval():
    """The paper's critics found such: 36 %, 99 %, 100 % are three seeds of one method."""
    matrix = np.array([[1.0] * s + [0.0] * (200 - s) for s in (72, 198, 200)])
    interval = seeds_interval(matrix)
    assert interval.low < 0.05
    assert interval.high == 1.0


def test_seeds_interval_contains_the_t_interval_of_the_means():
    generator = np.random.default_rng(4)
    matrix = (generator.random((3, 100)) < [[0.5], [0.6], [0.7]]).astype(float)
    means = matrix.mean(axis=1)
    half = 4.303 * means.std(ddof=1) / math.sqrt(3)
    interval = seeds_interval(matrix)
    # the problems add variance, and with it degrees of freedom, hence not the plain t interval but not far from it
    assert interval.high - interval.low > 0.6 * 2 * min(half, 0.4)
    assert interval.low < means.min()


def test_pairing_removes_what_the_problems_share():
    """Problems of very different difficulty, a little better answered by a: only pairing can see it."""
    generator = np.random.default_rng(5)
    difficulty = generator.choice([0.0, 1.0], size=300)
    a = np.minimum(1, difficulty + (generator.random((1, 300)) < 0.06))
    b = difficulty[None]
    paired = paired_difference(a, b)
    apart = seeds_interval(a).low - seeds_interval(b).high
    assert paired.low > 0 > apart


def test_swapping_the_methods_swaps_the_ends():
    generator = np.random.default_rng(6)
    a, b = (generator.random((2, 3, 90)) < 0.5).astype(float)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.value == pytest.approx(-back.value)
    assert forth.low == pytest.approx(-back.high, abs=0.02)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
def test_a_difference_of_unanimous_methods_is_not_certain(a, b):
    interval = paired_difference(np.full((3, 200), a), np.full((3, 200), b))
    assert interval.value == a - b
    assert 0.015 < interval.high - interval.low < 0.05
    assert -1 <= interval.low <= interval.value <= interval.high <= 1


def test_a_single_lucky_problem_decides_nothing():
    a = np.zeros((1, 200))
    a[0, 0] = 1
    assert paired_difference(a, np.zeros((1, 200))).low < 0


def coverage(seeds: int, seed_spread: float, rounds: int = 250) -> float:
    """Share of simulated comparisons whose interval holds the true difference; problems and seeds both vary."""
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(rounds):
        difficulty = generator.normal(0, 1.5, 100)
        rows = [
            1 / (1 + np.exp(-(difficulty + shift + generator.normal(0, seed_spread, (seeds, 1)))))
            for shift in (0.0, 0.0)
        ]
        answers = [(generator.random(row.shape) < row).astype(float) for row in rows]
        interval = paired_difference(*answers, resamples=300)
        hits += interval.low <= 0 <= interval.high
    return hits / rounds


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 1.0), (2, 0.5), (5, 1.0)])
def test_the_paired_interval_covers_the_truth(seeds, spread):
    assert coverage(seeds, spread) >= 0.93


def test_the_paired_interval_is_not_needlessly_wide():
    assert coverage(3, 0.0) <= 0.999


def test_difference_of_one_number_a_seed_is_welch():
    interval = seeds_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert interval is not None
    assert interval.value == pytest.approx(2.0)
    assert interval.high - interval.low == pytest.approx(2 * 4.3027 / math.sqrt(3), rel=1e-3)
    against_zero = seeds_difference([1.0, 2.0, 3.0])
    assert against_zero is not None
    assert against_zero.low == pytest.approx(interval.low)


def test_one_seed_gives_no_interval_of_a_single_number():
    assert seeds_difference([0.3], [0.1]) is None
    assert seeds_difference([0.3, 0.4], [0.1]) is None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.booleans(), min_size=1, max_size=4),
        min_size=1,
        max_size=30,
    )
)
def test_every_interval_holds_its_value_and_stays_in_range(correct):
    interval = mean_interval(correct, resamples=100)
    assert isinstance(interval, Interval)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
