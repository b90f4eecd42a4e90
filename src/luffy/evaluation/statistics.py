"""How sure a measured accuracy is: intervals over problems, over seeds, and of the difference of two methods.

Decisions, each chosen to err on the side of saying less:

- Problems are the unit. Several samples of one problem, or several seeds on it, are not independent draws, so problems
  are resampled whole (clustered).
- Seeds are the other unit. With S seeds the spread of the seeds' means enters with S - 1 degrees of freedom, as it must
  with two or three of them; a bootstrap of three seeds alone would claim far too much.
- **One seed has no spread.** An interval of a single run covers the choice of problems and nothing else: it says how
  this model would do on other problems, not how the method would do in another run.
- Certainty is never infinite. Where nearly all problems agree (all wrong, all solved), the spread seen is no estimate
  of the spread there is; Wilson's score interval over the problems (Newcombe's for a difference) takes over.

Accuracies are shares in [0, 1]. Everything is deterministic: the same input and `seed` give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000  # percentile ends then move by about 0.1 standard errors from one bootstrap seed to another
RARE = 5  # fewer problems than this that deviate from the rest: the score intervals join in (the usual "n p < 5")
BLOCK = 4_000_000  # resampled indices held at once


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float
    n: int  # problems (or, for `seeds_difference`, seeds) it rests on

    def to_json(self) -> dict[str, float | int]:
        """`{"value", "low", "high", "n"}`, as files hold it."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def mean_interval(
    correct: Sequence[Sequence[bool]], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean accuracy (avg@k) of one model, over problems.

    correct: [problems][samples]; the number of samples may differ. Each problem counts the same.
    Wilson's score interval for one sample a problem and where nearly all problems agree, else the percentile bootstrap
    over problems. Raises ValueError without problems or with a problem without samples.
    """
    if any(len(samples) == 0 for samples in correct):
        raise ValueError("correct: every problem needs at least one sample.")
    means = np.array([np.mean(samples) for samples in correct], dtype=np.float64)
    return _over_problems(means, confidence, resamples, seed)


def pass_at_k(
    correct: Sequence[Sequence[bool]],
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Chance that at least one of k samples is right, without bias from the samples at hand.

    A problem with c of n samples right contributes 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374).
    correct: [problems][samples], at least k samples each. Raises ValueError otherwise.
    """
    if k < 1 or any(len(samples) < k for samples in correct):
        raise ValueError(f"pass@{k} needs k >= 1 and at least k samples of every problem.")
    estimates = [
        1 - math.comb(len(samples) - int(np.sum(samples)), k) / math.comb(len(samples), k) for samples in correct
    ]
    return _over_problems(np.array(estimates, dtype=np.float64), confidence, resamples, seed)


def values_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over problems of one number in [0, 1] each, by the rules of `mean_interval`. Raises ValueError if none."""
    return _over_problems(np.array(values, dtype=np.float64), confidence, resamples, seed)


def paired_p_value(a: ArrayLike, b: ArrayLike, *, draws: int = 20_000, seed: int = 0) -> float:
    """How likely a difference of means at least this large is if the two models are alike, by sign flips, two-sided.

    a, b: [problems], one number a problem in the same order. If the models are alike, each problem's difference might
    as well have the other sign. Exact (all sign patterns) for up to 14 differences that are not 0, else by `draws`
    random ones; never 0. One run of each model: that two *methods* differ it cannot say.
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    differences = differences[differences != 0]
    observed = abs(float(differences.sum())) - 1e-9
    count = len(differences)
    if count <= 14:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ differences) >= observed))
    generator = np.random.default_rng(seed)
    extreme = 0
    block = max(1, BLOCK // count)
    for start in range(0, draws, block):
        signs = generator.integers(0, 2, (min(block, draws - start), count), dtype=np.int8)
        extreme += int(np.sum(np.abs((1 - 2 * signs) @ differences) >= observed))
    return (extreme + 1) / (draws + 1)


def seeds_interval(
    accuracy: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean accuracy of a method, over seeds and problems.

    accuracy: [seeds, problems], the share of right samples. The wider of the two-level bootstrap and the t interval of
    `_student_ends`. With one seed the interval covers the choice of problems only, as in `mean_interval`.
    """
    matrix = _matrix(accuracy, "accuracy")
    if len(matrix) == 1:
        return _over_problems(matrix[0], confidence, resamples, seed)
    value = float(matrix.mean())
    ends = [_bootstrap_ends([(1, matrix)], confidence, resamples, seed), _student_ends([(1, matrix)], confidence)]
    if _rare(matrix.mean(axis=0)):
        ends.append(wilson(value, matrix.shape[1], confidence))
    return _widest(value, ends, (0.0, 1.0), matrix.shape[1])


def means_interval(means: Sequence[float], problems: int, *, confidence: float = 0.95) -> Interval:
    """Mean accuracy of a method, over seeds and problems, where of each seed only its mean is kept.

    means: one a seed, shares, each over the same number of `problems`. How far the problems lie apart is then not
    known and is taken as large as it can be with this mean: as if each were either always or never solved. The wider
    of the t interval of `_student_ends` with that and of Wilson's. Raises ValueError without a mean or a problem.
    """
    values = np.asarray(means, dtype=np.float64)
    if len(values) == 0 or problems < 1:
        raise ValueError("an interval needs at least one mean over at least one problem.")
    value = float(values.mean())
    ends = [wilson(value, problems, confidence)]
    if len(values) > 1:
        terms = [(float(values.var(ddof=1)) / len(values), len(values) - 1)]
        terms += [(value * (1 - value) / (problems - 1), problems - 1)] if problems > 1 else []
        ends.append(_t_ends(value, terms, confidence))
    return _widest(value, ends, (0.0, 1.0), problems)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Accuracy of a minus accuracy of b on the same problems, over problems and seeds.

    a: [seeds of a, problems], b: [seeds of b, problems], with the problems in the same order. Problems are resampled
    jointly: a problem that is hard for both does not widen the interval. Seeds are resampled for each method by itself,
    since equal seed numbers do not make two methods' runs alike. The wider of the two-level bootstrap and the t
    interval of `_student_ends`, so that two or three seeds are not taken for many.

    Where a method has one seed, its run-to-run spread is unknown and *not covered*. (The untrained base has none.)
    """
    first, second = _matrix(a, "a"), _matrix(b, "b")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a and b must share their problems, got {first.shape[1]} and {second.shape[1]}.")
    parts = [(1, first), (-1, second)]
    value = float(first.mean() - second.mean())
    ends = [_bootstrap_ends(parts, confidence, resamples, seed), _student_ends(parts, confidence)]
    if _rare(first.mean(axis=0) - second.mean(axis=0)):
        ends.append(_newcombe(float(first.mean()), float(second.mean()), first.shape[1], confidence))
    return _widest(value, ends, (-1.0, 1.0), first.shape[1])


def seeds_difference(a: Sequence[float], b: Sequence[float] = (0.0,), *, confidence: float = 0.95) -> Interval | None:
    """Mean of a minus mean of b, for quantities with one number a run, such as the entropy: Welch's t interval.

    a, b: one number a seed. The default b compares with zero. None where a has one seed, or b one that is not a
    constant, because nothing is then known about the spread.
    """
    rows = [(1, np.asarray(a, dtype=np.float64)[:, None]), (-1, np.asarray(b, dtype=np.float64)[:, None])]
    constant = len(b) == 1 and b[0] == 0.0
    if len(a) < 2 or (len(b) < 2 and not constant):
        return None
    value = float(np.mean(a) - np.mean(b))
    low, high = _student_ends(rows, confidence)
    return Interval(value, low, high, len(a))


def wilson(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share seen in n independent trials (Wilson 1927).

    For the mean of n values in [0, 1] that are not just 0 and 1 it is conservative, since their variance is at most
    share * (1 - share).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


@lru_cache(maxsize=256)
def student_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t for real degrees of freedom >= 1, probability in [0.5, 1).

    With t = sqrt(degrees) tan(theta) the density becomes cos(theta)^(degrees - 1), which a fixed grid integrates well.
    """
    theta = np.linspace(0, math.pi / 2, 50_001)
    density = np.cos(theta) ** (degrees - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp(2 * probability - 1, cumulative / cumulative[-1], theta))
    return math.sqrt(degrees) * math.tan(angle)


def _over_problems(means: Array, confidence: float, resamples: int, seed: int) -> Interval:
    """Interval of the mean of per-problem values [problems]."""
    if len(means) == 0:
        raise ValueError("an interval needs at least one problem.")
    value = float(means.mean())
    if _rare(means) or bool(np.isin(means, (0.0, 1.0)).all()):
        low, high = wilson(value, len(means), confidence)
    else:
        low, high = _bootstrap_ends([(1, means[None])], confidence, resamples, seed)
    return Interval(value, min(low, value), max(high, value), len(means))


def _matrix(values: ArrayLike, name: str) -> Array:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name}: expected [seeds, problems], neither empty, got shape {list(matrix.shape)}.")
    return matrix


def _rare(values: Array) -> bool:
    """Whether fewer than RARE of the values [problems] deviate from the commonest one."""
    return len(values) - int(np.unique(values, return_counts=True)[1].max()) < RARE


def _bootstrap_ends(
    parts: Sequence[tuple[int, Array]], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile ends of a signed sum of means, resampling problems jointly and the seeds of each part by itself.

    parts: (sign, [seeds, problems]) with the same problems.
    """
    generator = np.random.default_rng(seed)
    problems = parts[0][1].shape[1]
    block = max(1, BLOCK // problems)
    values = []
    for start in range(0, resamples, block):
        rounds = min(block, resamples - start)
        drawn = generator.integers(0, problems, (rounds, problems))
        total = np.zeros(rounds)
        for sign, matrix in parts:
            seeds = len(matrix)
            weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=rounds) / seeds
            total += sign * np.take_along_axis(weights @ matrix, drawn, axis=1).mean(axis=1)
        values.append(total)
    low, high = np.quantile(np.concatenate(values), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _student_ends(parts: Sequence[tuple[int, Array]], confidence: float) -> tuple[float, float]:
    """Ends of the t interval of a signed sum of means over two crossed samples, seeds and problems.

    The variance is the sum of what the problems contribute (variance over problems of the seed-averaged contrast, with
    problems - 1 degrees of freedom) and what the seeds of each part contribute (variance of the seeds' means over
    their number, seeds - 1 degrees). Noise of single answers is in both, which errs on the wide side. Degrees of
    freedom: Satterthwaite. A part with one seed contributes nothing.
    """
    contrast = np.sum([sign * matrix.mean(axis=0) for sign, matrix in parts], axis=0)
    samples = [contrast] + [matrix.mean(axis=1) for _, matrix in parts]
    terms = [(float(s.var(ddof=1)) / len(s), len(s) - 1) for s in samples if len(s) > 1]
    return _t_ends(float(contrast.mean()), terms, confidence)


def _t_ends(value: float, terms: Sequence[tuple[float, int]], confidence: float) -> tuple[float, float]:
    """Ends of the t interval of a value whose variance is a sum. terms: (variance, degrees of freedom) of each part."""
    variance = sum(term for term, _ in terms)
    if variance < 1e-24:  # rounding of equal values
        return value, value
    degrees = variance**2 / sum(term**2 / degrees for term, degrees in terms)
    half = student_quantile(0.5 + confidence / 2, round(max(1.0, degrees), 3)) * math.sqrt(variance)
    return value - half, value + half


def _newcombe(a: float, b: float, n: int, confidence: float) -> tuple[float, float]:
    """Newcombe's hybrid score interval of a difference of two shares over n problems each (1998, method 10)."""
    (low_a, high_a), (low_b, high_b) = wilson(a, n, confidence), wilson(b, n, confidence)
    below = math.hypot(a - low_a, high_b - b)
    above = math.hypot(high_a - a, b - low_b)
    return a - b - below, a - b + above


def _widest(value: float, ends: Sequence[tuple[float, float]], bounds: tuple[float, float], problems: int) -> Interval:
    low = max(bounds[0], min(low for low, _ in ends))
    high = min(bounds[1], max(high for _, high in ends))
    return Interval(value, low, high, problems)
