"""What in the metrics of a run should make a reader stop: each a sentence with its number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luffy.comparison.collect import Comparison, Run

TAIL = 5  # the end of a run is its last fifth


@dataclass(frozen=True, slots=True)
class Sign:
    """A metric, how it is summed up over a run, and from where on it is worth a word."""

    metric: str
    summary: Callable[[Sequence[float]], float]
    bad: Callable[[float], bool]
    sentence: str  # with {value} in it


def _end(values: Sequence[float]) -> float:
    tail = values[-max(1, len(values) // TAIL) :]
    return sum(tail) / len(tail)


SIGNS: tuple[Sign, ...] = (
    Sign(
        "verifier/failures",
        sum,
        lambda n: n > 0,
        "the verifier failed {value:.0f} times; those rollouts have reward 0.",
    ),
    Sign(
        "completion/truncated",
        _end,
        lambda share: share > 0.2,
        "{value:.0%} of its own rollouts are cut off at the end of the run; raise rollout.max_tokens.",
    ),
    Sign(
        "policy/engine_gap",
        max,
        lambda gap: gap > 0.05,
        "log-probs of engine and trainer differ by up to {value:.2g} nats a token on average.",
    ),
    Sign(
        "policy/entropy",
        _end,
        lambda nats: nats < 0.01,
        "the entropy has fallen to {value:.2g} nats a token: the policy hardly explores any more.",
    ),
    Sign(
        "reward/traces",
        lambda values: sum(values) / len(values),
        lambda share: share < 0.99,
        "the verifier accepts only {value:.0%} of the traces.",
    ),
)


def warnings(comparison: Comparison) -> list[str]:
    """One sentence for each method and sign, about the first of its seeds that shows it."""
    return [
        f"{method}: {sentence}"
        for method, runs in comparison.methods.items()
        for sign in SIGNS
        if (sentence := _first_bad(sign, runs)) is not None
    ]


def _first_bad(sign: Sign, runs: Sequence[Run]) -> str | None:
    found = [(run.seed, sign.summary(series)) for run in runs if (series := run.series(sign.metric))]
    bad = [(seed, value) for seed, value in found if sign.bad(value)]
    if not bad:
        return None
    seed, value = bad[0]
    where = f"in {len(bad)} of {len(found)} seeds (first: seed {seed}), " if len(found) > 1 else ""
    return where + sign.sentence.format(value=value)
