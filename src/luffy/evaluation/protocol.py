"""Measure a policy on benchmarks: sample, verify, average, with intervals.

One protocol for the periodic evaluations of a run and for `luffy eval`: k samples a problem, avg@k (for k = 1 the
accuracy), and the unbiased pass@k' for k' below k; intervals by bootstrap over problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luffy.config import MINIATURE, Config
from luffy.data import encode_prompt, load_benchmark, parse_benchmark
from luffy.data.miniature import in_teachers_style
from luffy.errors import ConfigError
from luffy.evaluation.statistics import Interval, mean_interval
from luffy.reward import VerifierPool
from luffy.rollout import Engine, Sampling, TransformersEngine
from luffy.types import Completion, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luffy.data.prompts import Template
    from luffy.reward import Verdict

EVALUATION_SEED = 20250421  # the same noise in every run and step, so that differences are those of the policies


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of problems and how many samples each gets."""

    name: str
    given: str  # as named in the configuration or on the command line, with its @k
    problems: Sequence[Problem]
    prompt_ids: Sequence[Sequence[int]]
    samples: int = 1


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What a policy achieved on a benchmark."""

    name: str
    samples: int
    accuracy: Interval  # avg@k over problems
    length: float  # mean completion tokens
    truncated: float  # share of completions cut off by the limit
    failures: int  # verifications that failed; they count as wrong
    teachers_style: float | None  # the miniature only: share of completions worded like the teacher's
    generations: list[dict[str, Any]] = field(repr=False)  # per problem: id, prompt, answer, samples

    def metrics(self) -> dict[str, Any]:
        """As written to `evaluations.jsonl`."""
        style = {} if self.teachers_style is None else {"style/teacher": self.teachers_style}
        return {
            f"avg@{self.samples}": self.accuracy.to_json(),
            "completion/length": self.length,
            "completion/truncated": self.truncated,
            "verifier/failures": self.failures,
        } | style


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What `luffy eval` found, by benchmark."""

    model: str
    results: dict[str, BenchmarkResult]

    def to_json(self) -> dict[str, Any]:
        """For `--json`, in the form of a run's `summary.json`."""
        return {
            "model": self.model,
            "evaluations": {name: result.metrics() for name, result in self.results.items()},
        }


def load_benchmarks(
    names: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, template: Template, limit: int | None = None
) -> list[Benchmark]:
    """Load and tokenise benchmarks given as NAME-or-FILE[@k]. limit: the first so many problems of each."""
    benchmarks = []
    for name, (display, samples, problems) in read_benchmarks(names).items():
        chosen = problems[:limit]
        prompts = [encode_prompt(problem, tokenizer, template) for problem in chosen]
        benchmarks.append(Benchmark(display, name, chosen, prompts, samples))
    return benchmarks


def read_benchmarks(names: Sequence[str]) -> dict[str, tuple[str, int, list[Problem]]]:
    """Read benchmarks given as NAME-or-FILE[@k]: by that text the display name, k and the problems.

    Raises ConfigError for an unknown name and for two that results could not tell apart, DataError for a bad file.
    """
    read: dict[str, tuple[str, int, list[Problem]]] = {}
    named: dict[str, str] = {}
    for name in names:
        source, display, samples = parse_benchmark(name)
        if display in named:
            raise ConfigError(f"benchmarks {named[display]!r} and {name!r} are both called {display!r} in the results.")
        named[display] = name
        read[name] = (display, samples, load_benchmark(source))
    return read


def measure(
    benchmark: Benchmark,
    *,
    engine: Engine,
    verify: Callable[[Sequence[tuple[str, str]]], list[Verdict]],
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
    max_tokens: int,
) -> BenchmarkResult:
    """Sample the benchmark's problems and grade them. A completion that was cut off is wrong."""
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=EVALUATION_SEED)
    completions = engine.generate(benchmark.prompt_ids, benchmark.samples, sampling)
    texts = [
        [str(tokenizer.decode(list(one.token_ids), skip_special_tokens=True)) for one in group] for group in completions
    ]
    pairs = [(text, problem.answer) for problem, group in zip(benchmark.problems, texts, strict=True) for text in group]
    verdicts = verify(pairs)
    generations = [
        _record(problem, completions[index], texts[index], verdicts[index * benchmark.samples :])
        for index, problem in enumerate(benchmark.problems)
    ]
    samples = [sample for record in generations for sample in record["samples"]]
    is_miniature = benchmark.name.startswith(f"{MINIATURE}/")
    return BenchmarkResult(
        name=benchmark.name,
        samples=benchmark.samples,
        accuracy=mean_interval([[sample["correct"] for sample in record["samples"]] for record in generations]),
        length=_mean([sample["tokens"] for sample in samples]),
        truncated=_mean([not sample["finished"] for sample in samples]),
        failures=sum(verdict.failure is not None for verdict in verdicts),
        teachers_style=_mean([in_teachers_style(sample["text"]) for sample in samples]) if is_miniature else None,
        generations=generations,
    )


def evaluate(
    model: str,
    benchmarks: Sequence[str],
    config: Config | None = None,
    *,
    reward: Callable[[str, str], bool | float] | None = None,
    on_result: Callable[[BenchmarkResult], None] | None = None,
) -> EvalResult:
    """Evaluate a model folder or hub name on benchmarks given as NAME-or-FILE[@k].

    config: how prompts, sampling, verifier and model are set (`data.template`, `evaluation.*`, `reward.*`, `policy.*`).
    reward: grades (completion, answer) instead of the configured verifier. on_result: called after each benchmark.
    Raises LuffyError for a model, file or name that cannot be used.
    """
    from luffy.policy import load_model

    config = config or Config()
    loaded = load_model(model, config.policy)
    sets = load_benchmarks(benchmarks, loaded.tokenizer, template=config.data.template, limit=config.evaluation.limit)
    engine = TransformersEngine(
        loaded.model, eos_ids=loaded.eos_ids, pad_id=loaded.pad_id, batch_tokens=config.rollout.batch_tokens
    )
    results = {}
    with VerifierPool.of(config, reward) as pool:
        for benchmark in sets:
            results[benchmark.name] = measure(
                benchmark,
                engine=engine,
                verify=pool.verify_all,
                tokenizer=loaded.tokenizer,
                temperature=config.evaluation.temperature,
                max_tokens=config.evaluation.max_tokens or config.rollout.max_tokens,
            )
            if on_result:
                on_result(results[benchmark.name])
    return EvalResult(model, results)


def _record(
    problem: Problem, completions: Sequence[Completion], texts: Sequence[str], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    return {
        "id": problem.id,
        "prompt": problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt],
        "answer": problem.answer,
        "samples": [
            {
                "text": text,
                "correct": completion.finished and verdict.correct,
                "finished": completion.finished,
                "tokens": len(completion.token_ids),
                "extracted": verdict.extracted,
            }
            for completion, text, verdict in zip(completions, texts, verdicts[: len(texts)], strict=True)
        ],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
