"""Evaluate models on benchmarks, from a folder, the hub or a server; go on where a killed evaluation stopped."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luffy.config import Config, flatten, load_config
from luffy.data import HOLDOUT, hold_out, load_problems, load_training_problems, parse_benchmark
from luffy.errors import ConfigError, DataError
from luffy.evaluation.benchmarks import Benchmark, load_benchmarks
from luffy.evaluation.metrics import BenchmarkResult
from luffy.evaluation.overlap_warning import describe_overlap
from luffy.evaluation.protocol import measure
from luffy.evaluation.samplers import EngineSampler, Sample, Sampler
from luffy.evaluation.store import SampleStore, model_folder
from luffy.reward.graders import Graders
from luffy.reward.verifiers import RewardFunction
from luffy.rollout import Sampling
from luffy.types import Problem

logger = logging.getLogger(__name__)

CHUNKS = {"transformers": 256, "vllm": 8192, "endpoint": 512}  # completions between two saves, by engine
AS_IN_TRAINING = ("data.template", "data.thought_opening", "data.thought_closing", "reward.kind", "reward.format")
SAMPLED_BYTES = 2**20  # at both ends of a weight file: training changes all of it

OnProgress = Callable[[str, int, int, float], None]  # (benchmark, problems done, in all, accuracy so far)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What `luffy eval` found about a model, by benchmark."""

    model: str
    results: dict[str, BenchmarkResult]

    def to_json(self) -> dict[str, Any]:
        """For `--json`, in the form of a run's `summary.json`."""
        return {
            "model": self.model,
            "evaluations": {name: result.metrics() for name, result in self.results.items()},
        }


def evaluate(
    model: str,
    benchmarks: Sequence[str],
    config: Config | None = None,
    *,
    reward: RewardFunction | None = None,
    output: Path | str | None = None,
    trained_on: str | None = None,
    on_progress: OnProgress | None = None,
) -> EvalResult:
    """Evaluate a model on benchmarks given as NAME-or-DATA[@k].

    model: a folder, a hub name, or with `evaluation.engine=endpoint` the server's name of it. config: how prompts,
    sampling, verifier and model are set (`data.template`, `evaluation.*`, `reward.*`, `policy.*`). reward: grades
    (completion, answer) instead of the configured verifier; a benchmark with a verifier of its own keeps that. output:
    folder in which the samples are kept and an evaluation that was killed goes on. trained_on: the model's training
    data, to warn of problems that are in both; of a model in a run folder they are known. on_progress: called after
    each chunk. Raises LuffyError for a model, file or name that cannot be used.
    """
    config = config or Config()
    sets = load_benchmarks(benchmarks, config, _held_out(benchmarks, config))
    for line in [*overlaps(model, sets, trained_on), *filter(None, [trained_otherwise(model, config)])]:
        logger.warning(line)
    results = {}
    sampler = ModelSampler(model, config)
    with Graders(config, reward) as graders:
        for benchmark in sets:
            store = None
            if output is not None:
                settings = settings_of(model, benchmark, config)
                store = SampleStore(model_folder(Path(output), model), benchmark.name, settings)
            results[benchmark.name] = measure(
                benchmark,
                sampler=sampler,
                graders=graders,
                config=config,
                store=store,
                chunk=CHUNKS[config.evaluation.engine],
                on_chunk=_named(on_progress, benchmark.name),
            )
    return EvalResult(model, results)


class ModelSampler:
    """Answers of the model that is evaluated; it is loaded when the first is asked for."""

    def __init__(self, model: str, config: Config) -> None:
        self._model, self._config = model, config
        self._sampler: Sampler | None = None

    def sample(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        if self._sampler is None:
            self._sampler = open_sampler(self._model, self._config)
        return self._sampler.sample(problems, n, sampling)


def open_sampler(model: str, config: Config) -> Sampler:
    """The sampler that `evaluation.engine` names. Raises LuffyError where model, server or package is missing."""
    if config.evaluation.engine == "endpoint":
        from luffy.evaluation.endpoint_sampler import EndpointSampler

        return EndpointSampler(model, config)
    if config.evaluation.engine == "vllm":
        from luffy.evaluation.vllm_sampler import VllmSampler

        return VllmSampler(model, config)
    from luffy.policy import load_model
    from luffy.rollout import TransformersEngine

    loaded = load_model(model, config.policy)
    engine = TransformersEngine(
        loaded.model, eos_ids=loaded.eos_ids, pad_id=loaded.pad_id, batch_tokens=config.rollout.batch_tokens
    )
    return EngineSampler(engine, loaded.tokenizer, config.data.template)


def _held_out(benchmarks: Sequence[str], config: Config) -> dict[str, list[Problem]] | None:
    """The problems that a run of this configuration keeps out of training, if they are asked for."""
    asked = any(parse_benchmark(name)[0] == HOLDOUT for name in benchmarks)
    if not asked or not config.data.holdout:
        return None
    return {HOLDOUT: hold_out(load_training_problems(config.data), config.data.holdout)[1]}


def overlaps(model: str, benchmarks: Sequence[Benchmark], trained_on: str | None = None) -> list[str]:
    """Warnings of benchmarks that share problems with what the model was trained on, as far as that is known."""
    if trained_on is not None:
        return describe_overlap(benchmarks, load_problems(trained_on, on_bad_row="drop").problems, trained_on)
    record = _record_of_run(model)
    if record is None:
        return []
    try:
        data = load_config(record).data
        source = load_training_problems(data.model_copy(update={"on_bad_row": "drop"}))
        source = hold_out(source, data.holdout)[0] if data.holdout else source
    except (DataError, ConfigError) as error:
        first_line = str(error).splitlines()[0]
        return [f"{record}: cannot tell whether the benchmarks overlap with the training data ({first_line})"]
    return describe_overlap(benchmarks, source.problems, data.train)


def trained_otherwise(model: str, config: Config) -> str | None:
    """A warning where prompts or verifier are not those that the model of a run was trained with; else None."""
    record = _record_of_run(model)
    if record is None:
        return None
    try:
        then, now = flatten(load_config(record)), flatten(config)
    except ConfigError:
        return None
    different = [f"{key}={now[key]} ({then[key]} in training)" for key in AS_IN_TRAINING if then[key] != now[key]]
    if not different:
        return None
    return f"{model} is evaluated with {', '.join(different)}. To take over what it was trained with: --recipe {record}"


def _record_of_run(model: str) -> Path | None:
    """The configuration of the run that has left this model in RUN/model."""
    record = Path(model).parent / "config.yaml"
    return record if record.is_file() else None


def settings_of(model: str, benchmark: Benchmark, config: Config) -> dict[str, Any]:
    """What the samples and verdicts of a benchmark depend on, in plain values."""
    evaluation, policy = config.evaluation, config.policy
    return {
        "model": fingerprint(model),
        "problems": f"{len(benchmark.problems)}, digest {_digest(benchmark.problems)}",
        "samples": benchmark.samples,
        "engine": evaluation.engine,
        "endpoint": evaluation.endpoint,
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "max_tokens": evaluation.max_tokens or config.rollout.max_tokens,
        "template": config.data.template,
        "verifier": benchmark.kind or config.reward.kind,
        "format": [config.reward.format, config.data.thought_closing],
        "threshold": config.reward.threshold,
        "dtype": policy.dtype,
        "context": [policy.context_length, policy.rope_theta],
    }


def _digest(problems: Sequence[Problem]) -> str:
    return hashlib.sha256(repr(list(problems)).encode("utf-8", "replace")).hexdigest()[:16]


def fingerprint(model: str) -> str:
    """What tells this model's weights from others: its name, or for a folder a digest of sizes and samples of files."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for file in sorted(one for one in folder.iterdir() if one.is_file() and one.suffix != ".md"):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(SAMPLED_BYTES))
            content.seek(max(0, size - SAMPLED_BYTES))
            digest.update(content.read(SAMPLED_BYTES))
    return f"{model} {digest.hexdigest()[:16]}"


def _named(on_progress: OnProgress | None, name: str) -> Callable[[int, int, float], None] | None:
    if on_progress is None:
        return None
    return lambda done, total, accuracy: on_progress(name, done, total, accuracy)
