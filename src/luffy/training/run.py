"""A run while it lasts: its parts, how far it has come, and what it leaves behind."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luffy.algorithm import METHODS, Phase
from luffy.config import Config, completion_format
from luffy.data import EncodedProblem, LoadedProblems, prepare_problems
from luffy.data.prompts import format_in_use
from luffy.errors import DataError, ModelError, RunError
from luffy.evaluation import Benchmark, EngineSampler, measure
from luffy.files import write_folder_whole
from luffy.policy import LoadedModel, check_context, load_model
from luffy.reward.graders import Graders
from luffy.rollout import Engine, TransformersEngine
from luffy.training.card import model_card
from luffy.training.checkpoint import (
    Progress,
    describe_last,
    find_checkpoint,
    load_optimizer,
    load_weights,
    read_ahead,
    read_progress,
    save_checkpoint,
    save_model,
)
from luffy.training.collector import Batch, Collector
from luffy.training.draw import ProblemRow, draw
from luffy.training.first_batch import describe_mismatch
from luffy.training.groups import trace_rollout
from luffy.training.learner import BAD_STEPS_IN_A_ROW, Learner
from luffy.training.look import DETAILED_GROUPS, rollout_records, score, trace_record, watched_traces
from luffy.training.metrics import group_metrics
from luffy.training.run_folder import RunFolder, RunSummary
from luffy.types import Group, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

OnStep = Callable[[int, int, dict[str, Any]], None]  # step, steps in all, metrics


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the run and where it lies in its phase."""

    number: int  # from 1, over all phases
    phase: Phase
    index: int  # from 0, within the phase


class Run:
    """A run while it lasts: its parts, its progress, and what it leaves behind."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        source: LoadedProblems,
        benchmarks: Sequence[Benchmark],
        graders: Graders,
        on_step: OnStep | None,
    ) -> None:
        self.config, self.folder, self.graders, self.on_step = config, folder, graders, on_step
        self.pool, self.benchmarks = graders.pool(), benchmarks
        self.method = METHODS[config.method]
        self.source = source
        self.progress = Progress()
        self.evaluations: dict[str, dict[str, Any]] = {}

    # -- before the first step

    def finished_summary(self) -> RunSummary | None:
        """The summary of this run if it has already come to its end."""
        summary = self.folder.summary()
        if summary and summary.status == "finished" and summary.steps >= self.total_steps:
            logger.info("%s: this run is already finished (%d steps).", self.folder.path, summary.steps)
            return summary
        return None

    def phases(self) -> list[tuple[Phase, int, int]]:
        """Each phase with the number of steps before it and its own; the last one takes `steps`."""
        lengths = [self.config.sft.steps] * (len(self.method.phases) - 1) + [self.config.steps]
        return [(phase, sum(lengths[:place]), lengths[place]) for place, phase in enumerate(self.method.phases)]

    @property
    def total_steps(self) -> int:
        """Steps over all phases."""
        return sum(steps for _, _, steps in self.phases())

    def prepare(self) -> None:
        """Load model, data and benchmarks; take up the newest checkpoint, or evaluate the base."""
        config = self.config
        self.started = time.perf_counter()
        self.loaded: LoadedModel = load_model(config.model, config.policy)
        self.problems, self.traces = self._prepare_problems()
        self.learner = Learner(self.loaded, config)
        self.engine: Engine = TransformersEngine(
            self._generating_model(),
            eos_ids=self.loaded.eos_ids,
            pad_id=self.loaded.pad_id,
            batch_tokens=config.rollout.batch_tokens,
        )
        self.checkpoint = find_checkpoint(self.folder.path)
        if self.checkpoint is None:
            self.folder.cut_after(-1)
            self._evaluate(self.benchmarks)
        else:
            self.progress = read_progress(self.checkpoint)
            load_weights(self.checkpoint, self.loaded)
            self.engine.update_weights(self.loaded.model)
            self.learner.tokens_trained = self.progress.tokens_trained
            self.folder.cut_after(self.progress.step)
            logger.info("%s: going on after step %d.", self.folder.path, self.progress.step)
        self.collector = self._collector()
        self.seconds_before = self.progress.seconds
        self._summarise("running")

    def steps_left(self) -> Iterator[Step]:
        """The steps not yet done; each phase begins with an optimizer of its own."""
        for phase, before, steps in self.phases():
            for index in range(max(0, self.progress.step - before), steps):
                if self.learner.phase_begin != before:
                    self.learner.start_phase(phase, before, steps)
                    if index > 0 and self.checkpoint is not None:
                        load_optimizer(self.checkpoint, self.learner)
                yield Step(before + index + 1, phase, index)

    def next_ahead(self, step: Step) -> int | None:
        """The step whose groups are to be collected while this one updates, if any."""
        return step.number + 1 if self.config.rollout.ahead and step.number < self.total_steps else None

    def draw_traces(self, step: Step) -> list[Rollout]:
        """The traces of a supervised step."""
        drawn = draw(self.traces, step.index, self.config.sft.batch_size, "traces", self.config.seed)
        return [trace_rollout(problem, trace) for problem, trace in drawn]

    def _collector(self) -> Collector:
        """Makes the batches of the reinforcement phase, from where the progress says that it is."""
        least = self.config.problems_per_step
        before = self.phases()[-1][1]
        row = ProblemRow(
            self.problems,
            seed=self.config.seed,
            least=least,
            drop_solved=self.config.data.drop_solved,
            # a checkpoint of an earlier version does not say how many were drawn: it was the same number every step
            position=self.progress.problems_drawn or max(0, self.progress.step - before) * least,
            visits=self.progress.solved,
        )
        collector = Collector(
            row, engine=self.engine, submit=self.pool.submit, tokenizer=self.loaded.tokenizer, config=self.config
        )
        record = read_ahead(self.checkpoint) if self.checkpoint else None
        collector.ready = Batch.of(record, self.problems) if record else None
        return collector

    def _generating_model(self) -> PreTrainedModel:
        """The policy itself, or a copy: one of another type, or one that generates while the policy changes."""
        policy, wanted = self.loaded.model, self.config.rollout
        by_products = torch.bfloat16 if self.learner.autocast == "bfloat16" else policy.dtype
        dtype = by_products if wanted.dtype == "auto" else getattr(torch, wanted.dtype)
        if not wanted.ahead and dtype == policy.dtype:
            return policy
        try:
            device = torch.device(wanted.device) if wanted.device else policy.device
            model = copy.deepcopy(policy).requires_grad_(False).to(device, dtype)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ModelError(f"rollout.device={wanted.device} cannot be used: {reason}") from None
        if wanted.ahead and model.device == policy.device:
            logger.warning(
                "rollout.ahead=1: generating and updating share %s, so a step is hardly faster than one after the "
                "other. Where there is a second GPU, say rollout.device=cuda:1.",
                policy.device,
            )
        return model

    def _prepare_problems(self) -> tuple[list[EncodedProblem], list[tuple[EncodedProblem, Any]]]:
        data = self.config.data
        prepared = prepare_problems(
            self.source,
            self.loaded.tokenizer,
            template=data.template,
            max_prompt_tokens=data.max_prompt_tokens,
            max_completion_tokens=self.config.rollout.max_tokens,
            verify=self.pool.verify_all,
            on_long_prompt=data.on_long_prompt,
            on_bad_trace=data.on_bad_trace,
            on_long_trace=data.on_long_trace,
            layout=completion_format(self.config),
        )
        for line in prepared.report.lines():
            logger.log(logging.WARNING if prepared.report.findings else logging.INFO, line)
        if not prepared.problems:
            raise DataError(f"{data.train}: no problem is left to train on.")
        longest = max(len(problem.prompt_ids) for problem in prepared.problems)
        check_context(self.loaded.model, longest, self.config.rollout.max_tokens)
        traces = [(problem, trace) for problem in prepared.problems for trace in problem.traces]
        if self.method.learns_from_traces and not traces:
            raise DataError(
                f"{data.train}: method {self.config.method!r} learns from traces, and no problem has one that can be "
                "used. Add `traces` to the rows, or train with method=on_policy."
            )
        return prepared.problems, traces

    # -- around a step

    def show(self, step: Step, batch: Batch) -> None:
        """Before the update of some steps: write the rollouts it learns from, and how the watched traces fare."""
        every = self.config.rollouts_every
        if not every or (step.number % every and step.number != 1):
            return
        tokenizer = self.loaded.tokenizer
        scored = partial(
            score,
            self.learner.scorer,
            temperature=1.0 if step.phase == "sft" else self.config.rollout.temperature,
            token_budget=self.config.policy.token_budget,
        )
        if batch.groups:
            detailed = [scored(group.rollouts) for group in batch.groups[:DETAILED_GROUPS]]
            self.folder.write_rollouts(step.number, rollout_records(batch.groups, tokenizer, detailed))
        watched = watched_traces(self.traces)
        rollouts = [trace_rollout(problem, trace) for problem, trace in watched]
        lines = zip((problem for problem, _ in watched), rollouts, scored(rollouts), strict=True)
        self.folder.write_traces(step.number, [trace_record(*line, tokenizer) for line in lines])

    def record(self, step: Step, batch: Batch, update: dict[str, Any]) -> None:
        """Write the step's metrics; evaluate and save what is due."""
        groups = batch.drawn
        generated = sum(
            len(rollout.completion_ids) for group in groups for rollout in group.rollouts if not rollout.off_policy
        )
        self.progress.step = step.number
        self.progress.tokens_generated += generated
        self.progress.verifier_failures += sum(
            rollout.failure is not None for group in groups for rollout in group.rollouts
        )
        self.progress.tokens_trained = self.learner.tokens_trained
        metrics = {"phase": step.phase} | (group_metrics(groups) if groups else {}) | batch.metrics | update
        metrics |= {
            "tokens/trained": self.progress.tokens_trained,
            "tokens/generated": self.progress.tokens_generated,
        }
        self.folder.append_metrics(step.number, metrics)
        if update["update/skipped"]:
            self._warn_of_skipped(step.number)
        if groups and step.index == 0:
            self._warn_of_mismatch(groups)
        self._evaluate_and_save(step.number)
        if self.on_step:
            self.on_step(step.number, self.total_steps, metrics | self._newest_accuracy())

    def _newest_accuracy(self) -> dict[str, float]:
        """On the first watched set, for whoever watches the run."""
        watched = (one.name for one in self.benchmarks if one.given in self.config.evaluation.watch)
        newest = self.evaluations.get(next(watched, ""), {})
        return {"accuracy": next(iter(newest.values()))["value"]} if newest else {}

    def _warn_of_mismatch(self, groups: Sequence[Group]) -> None:
        problem = groups[0].problem
        template = self.config.data.template
        layout = format_in_use(problem, self.loaded.tokenizer, template, completion_format(self.config))
        mismatch = describe_mismatch(groups, self.config, layout)
        if mismatch:
            logger.warning(mismatch)

    def _warn_of_skipped(self, number: int) -> None:
        logger.warning(
            "step %d: loss or gradient is not finite, update skipped (%d of %d allowed in a row). %s",
            number,
            self.learner.skipped_in_a_row,
            BAD_STEPS_IN_A_ROW,
            describe_last(self.folder.path),
        )

    def _evaluate_and_save(self, number: int) -> None:
        """What is due after a step."""
        settings = self.config.evaluation
        if settings.every and number % settings.every == 0 and number < self.total_steps:
            self._evaluate([one for one in self.benchmarks if one.given in settings.watch])
        self.progress.seconds = self.seconds_before + time.perf_counter() - self.started
        every = self.config.checkpoint_every
        phase_ends = {before + steps for _, before, steps in self.phases()}
        if number in phase_ends or (every and number % every == 0):
            self._save_checkpoint()

    def _evaluate(self, benchmarks: Sequence[Benchmark]) -> None:
        sampler = EngineSampler(self.engine, self.loaded.tokenizer, self.config.data.template)
        for benchmark in benchmarks:
            result = measure(benchmark, sampler=sampler, graders=self.graders, config=self.config)
            self.folder.write_generations(self.progress.step, benchmark.name, result.generations)
            self.folder.append_evaluation(
                {
                    "step": self.progress.step,
                    "tokens/trained": self.progress.tokens_trained,
                    "tokens/generated": self.progress.tokens_generated,
                    "set": benchmark.name,
                }
                | result.metrics()
            )
            self.evaluations[benchmark.name] = {
                name: value for name, value in result.metrics().items() if name.startswith("avg@")
            }

    def _save_checkpoint(self) -> None:
        self.progress.problems_drawn, self.progress.solved = self.collector.row.position, self.collector.row.visits
        ready = self.collector.ready
        save_checkpoint(
            self.folder.path,
            self.loaded,
            self.learner,
            self.progress,
            keep=self.config.keep_checkpoints,
            ahead=ready.record() if ready else None,
        )

    # -- at the end

    def failed(self, error: RunError) -> RunError:
        """The error, completed by the checkpoint to go on from; leaves word of it, as far as the disk lets us."""
        with contextlib.suppress(RunError):
            self._summarise("failed")
        return RunError(f"{error} {describe_last(self.folder.path)}")

    def stop(self, reason: str) -> RunSummary:
        """Leave a checkpoint to go on from."""
        self._save_checkpoint()
        logger.warning("stopped after step %d (%s); the same command goes on from there.", self.progress.step, reason)
        return self._summarise("stopped")

    def finish(self) -> RunSummary:
        """Evaluate, and leave the trained model."""
        self._evaluate(self.benchmarks)
        self.progress.seconds = self.seconds_before + time.perf_counter() - self.started
        write_folder_whole(self.folder.path / "model", self._fill_model)
        return self._summarise("finished")

    def _fill_model(self, folder: Path) -> None:
        save_model(folder, self.loaded)
        (folder / "README.md").write_text(model_card(self.config, self.progress, self.evaluations), encoding="utf-8")

    def _summarise(self, status: str) -> RunSummary:
        summary = RunSummary(
            method=self.config.method,
            seed=self.config.seed,
            status=status,
            steps=self.progress.step,
            seconds=round(self.progress.seconds, 3),
            tokens={"trained": self.progress.tokens_trained, "generated": self.progress.tokens_generated},
            evaluations=self.evaluations,
            output=str(self.folder.path),
        )
        self.folder.write_summary(summary)
        return summary
