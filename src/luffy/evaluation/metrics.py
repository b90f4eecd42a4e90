"""From graded samples to what is reported: avg@k, pass@k, maj@k, length, truncation, extraction.

A record is a problem with its samples, as it is kept and shown:

    {"id", "prompt", "answer", "samples": [{"text", "correct", "finished", "tokens", "extracted", "failure"}, ...]}
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luffy.config import MINIATURE
from luffy.data.miniature import in_teachers_style
from luffy.evaluation.statistics import Interval, mean_interval, pass_at_k, values_interval
from luffy.reward import Verdict

Record = dict[str, Any]
Verify = Callable[[Sequence[tuple[str, str]]], list[Verdict]]

COMPARED_BY_VERIFIER = ("math", "number")  # kinds whose equal answers may be written differently


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What a policy achieved on a benchmark."""

    name: str
    samples: int
    accuracy: Interval  # avg@k over problems
    passed: dict[int, Interval]  # pass@k' for k' = 1, 2, 4, ... k; empty for one sample
    majority: Interval | None  # maj@k; None for one sample
    length: float  # mean completion tokens
    truncated: float  # share of completions cut off by the limit
    extracted: float | None  # share of completions that ended and have an answer; None: the verifier does not tell
    failures: int  # verifications that failed; they count as wrong
    teachers_style: float | None  # the miniature only: share of completions worded like the teacher's
    generations: list[Record] = field(repr=False)

    def metrics(self) -> dict[str, Any]:
        """As written to `evaluations.jsonl`."""
        metrics: dict[str, Any] = {f"avg@{self.samples}": self.accuracy.to_json()}
        metrics |= {f"pass@{k}": interval.to_json() for k, interval in self.passed.items()}
        if self.majority is not None:
            metrics[f"maj@{self.samples}"] = self.majority.to_json()
        metrics |= {"completion/length": self.length, "completion/truncated": self.truncated}
        if self.extracted is not None:
            metrics["completion/extracted"] = self.extracted
        metrics["verifier/failures"] = self.failures
        return metrics if self.teachers_style is None else metrics | {"style/teacher": self.teachers_style}


def summarise(name: str, records: list[Record], verify: Verify, kind: str) -> BenchmarkResult:
    """The result of a benchmark's records. verify, kind: of its verifier, which also compares answers for maj@k."""
    k = len(records[0]["samples"])
    correct = [[bool(sample["correct"]) for sample in record["samples"]] for record in records]
    samples = [sample for record in records for sample in record["samples"]]
    tells = any(sample["extracted"] is not None for sample in samples) or not kind.startswith("python:")
    return BenchmarkResult(
        name=name,
        samples=k,
        accuracy=mean_interval(correct),
        passed={one: pass_at_k(correct, one) for one in sizes(k)},
        majority=values_interval(majority_shares(records, verify, kind)) if k > 1 else None,
        length=_mean([sample["tokens"] for sample in samples]),
        truncated=_mean([not sample["finished"] for sample in samples]),
        extracted=_mean([_answers(sample) for sample in samples]) if tells else None,
        failures=sum(sample["failure"] is not None for sample in samples),
        teachers_style=_mean([in_teachers_style(sample["text"]) for sample in samples])
        if name.startswith(f"{MINIATURE}/")
        else None,
        generations=records,
    )


def sizes(k: int) -> list[int]:
    """The k' of pass@k': powers of two below k, and k itself; none for one sample."""
    return sorted({2**power for power in range(k.bit_length()) if 2**power <= k} | {k}) if k > 1 else []


def majority_shares(records: Sequence[Record], verify: Verify, kind: str) -> list[float]:
    """For each problem, whether the answer that most samples gave is right.

    Samples that were cut off or have no answer do not vote. Answers are the same when their texts are, white space
    aside, or when the verifier takes one for the other. Several answers with the most votes: the share of them that
    is right, which is what drawing one of them would give on average. No vote at all: wrong.
    """
    votes = [
        Counter(_normal(sample["extracted"]) for sample in record["samples"] if _answers(sample)) for record in records
    ]
    right = [
        {_normal(sample["extracted"]) for sample in record["samples"] if _answers(sample) and sample["correct"]}
        for record in records
    ]
    merged = _merge(votes, verify) if kind in COMPARED_BY_VERIFIER else [{one: one for one in count} for count in votes]
    return [_share(count, good, same) for count, good, same in zip(votes, right, merged, strict=True)]


def _merge(votes: Sequence[Counter[str]], verify: Verify) -> list[dict[str, str]]:
    """For each problem, the answer that stands for each answer, equal ones having the same."""
    pairs = [(index, a, b) for index, count in enumerate(votes) for a, b in itertools.combinations(count, 2)]
    verdicts = verify([(f"\\boxed{{{a}}}", b) for _, a, b in pairs])
    stands = [{one: one for one in count} for count in votes]
    for (index, a, b), verdict in zip(pairs, verdicts, strict=True):
        same = stands[index]
        if verdict.correct and same[a] != same[b]:
            old, new = same[b], same[a]
            stands[index] = {one: new if root == old else root for one, root in same.items()}
    return stands


def _share(count: Counter[str], right: set[str], same: dict[str, str]) -> float:
    total: Counter[str] = Counter()
    for answer, number in count.items():
        total[same[answer]] += number
    most = max(total.values(), default=0)
    winners = [answer for answer, number in total.items() if number == most]
    good = {same[answer] for answer in right}
    return sum(answer in good for answer in winners) / len(winners) if winners else 0.0


def _answers(sample: dict[str, Any]) -> bool:
    return bool(sample["finished"]) and sample["extracted"] is not None and bool(sample["extracted"].strip())


def _normal(answer: str) -> str:
    return " ".join(answer.split())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
