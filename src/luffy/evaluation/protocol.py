"""Measure a policy on a benchmark: sample, verify, average, with intervals.

One protocol for the periodic evaluations of a run and for `luffy eval`: k samples a problem, a completion that was cut
off is wrong, the same noise every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luffy.config import Config
from luffy.evaluation.benchmarks import Benchmark
from luffy.evaluation.metrics import BenchmarkResult, Record, summarise
from luffy.evaluation.samplers import Sample, Sampler
from luffy.evaluation.store import SampleStore
from luffy.reward import Verdict
from luffy.reward.graders import Graders
from luffy.rollout import Sampling
from luffy.types import Problem

EVALUATION_SEED = 20250421  # the same noise in every run and step, so that differences are those of the policies

OnChunk = Callable[[int, int, float], None]  # (problems done, problems in all, accuracy so far)


def measure(
    benchmark: Benchmark,
    *,
    sampler: Sampler,
    graders: Graders,
    config: Config,
    store: SampleStore | None = None,
    chunk: int | None = None,
    on_chunk: OnChunk | None = None,
) -> BenchmarkResult:
    """Sample the benchmark's problems and grade them.

    chunk: completions made at a time, of whole problems; the noise depends on it; None: all at once. store: keeps each
    chunk and gives back what an earlier start has made. on_chunk: called after each.
    """
    kind = benchmark.kind or config.reward.kind
    verify = graders.pool(benchmark.kind).verify_all
    records = store.read() if store else None
    if records is None:
        records = []
        problems = len(benchmark.problems) if chunk is None else max(1, chunk // benchmark.samples)
        for start in range(0, len(benchmark.problems), problems):
            part = store.read_part(start) if store else None
            if part is None:
                chosen = benchmark.problems[start : start + problems]
                samples = sampler.sample(chosen, benchmark.samples, sampling_of(config, start))
                part = grade(chosen, samples, verify)
                if store:
                    store.write_part(start, part)
            records += part
            if on_chunk:
                on_chunk(len(records), len(benchmark.problems), accuracy(records))
        if store:
            store.finish(records)
    return summarise(benchmark.name, records, verify, kind)


def sampling_of(config: Config, start: int = 0) -> Sampling:
    """How an evaluation samples the chunk that begins with problem `start`."""
    settings = config.evaluation
    return Sampling(
        max_tokens=settings.max_tokens or config.rollout.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=EVALUATION_SEED + start,
    )


def grade(
    problems: Sequence[Problem],
    samples: Sequence[Sequence[Sample]],
    verify: Callable[[Sequence[tuple[str, str]]], list[Verdict]],
) -> list[Record]:
    """The records of problems with their samples. A completion that was cut off is wrong."""
    pairs = [(one.text, problem.answer) for problem, group in zip(problems, samples, strict=True) for one in group]
    verdicts = iter(verify(pairs))
    return [
        _record(problem, group, [next(verdicts) for _ in group])
        for problem, group in zip(problems, samples, strict=True)
    ]


def accuracy(records: Sequence[Record]) -> float:
    """Share of right samples."""
    right = [sample["correct"] for record in records for sample in record["samples"]]
    return sum(right) / len(right) if right else 0.0


def _record(problem: Problem, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> Record:
    return {
        "id": problem.id,
        "prompt": problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt],
        "answer": problem.answer,
        "samples": [
            {
                "text": sample.text,
                "correct": sample.finished and verdict.correct,
                "finished": sample.finished,
                "tokens": sample.tokens,
                "extracted": verdict.extracted,
                "failure": verdict.failure,
            }
            for sample, verdict in zip(samples, verdicts, strict=True)
        ],
    }
