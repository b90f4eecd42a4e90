"""What a run leaves behind: metrics, rollouts, evaluations, checkpoints, and the trained model."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from luffy.config import Config, completion_format
from luffy.data.prompts import format_in_use
from luffy.errors import EngineLostError, RunError
from luffy.evaluation import Benchmark, EngineSampler, measure
from luffy.files import write_folder_whole
from luffy.policy import LoadedModel
from luffy.policy.adapters import has_adapter, save_adapter
from luffy.reward.graders import Graders
from luffy.rollout import Engine
from luffy.training.card import model_card, shown_place
from luffy.training.checkpoint import (
    Progress,
    Retention,
    WholeState,
    describe_last,
    save_checkpoint,
    save_in_parts,
    save_model,
)
from luffy.training.collector import Batch, Collector
from luffy.training.first_batch import describe_mismatch
from luffy.training.learner import BAD_STEPS_IN_A_ROW, Learner
from luffy.training.metrics import group_metrics
from luffy.training.plan import Step, plan_phases
from luffy.training.run_folder import Folder, RunSummary
from luffy.training.shared_sampler import SharedSampler
from luffy.types import Group

logger = logging.getLogger(__name__)

OnStep = Callable[[int, int, dict[str, Any]], None]  # step, steps in all, metrics


@dataclass(frozen=True, slots=True)
class Parts:
    """What a step works with, and what is therefore recorded."""

    loaded: LoadedModel
    learner: Learner
    engine: Engine
    collector: Collector
    graders: Graders


class Recorder:
    """Counts how far a run has come, and writes what it leaves behind."""

    def __init__(
        self,
        config: Config,
        folder: Folder,
        parts: Parts,
        progress: Progress,
        benchmarks: Sequence[Benchmark],
        on_step: OnStep | None,
        *,
        began: float,
    ) -> None:
        """progress: of the checkpoint that the run goes on from; it is counted on. began: by `time.perf_counter`."""
        self.config, self.folder, self.parts, self.progress = config, folder, parts, progress
        self.benchmarks, self.on_step = benchmarks, on_step
        self.phase_ends = [stretch.end for stretch in plan_phases(config)]
        self.evaluations = _newest_evaluations(folder.evaluations())
        self._began, self._seconds_before = began, progress.seconds

    def record(self, step: Step, batch: Batch, update: dict[str, Any]) -> None:
        """Write the step's metrics; evaluate and save what is due."""
        groups = batch.drawn
        self._count(step, groups)
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
            self.on_step(step.number, self.phase_ends[-1], metrics | self._newest_accuracy())

    def evaluate(self, benchmarks: Sequence[Benchmark] | None = None) -> None:
        """Measure the policy as it is; None: on all benchmarks."""
        whole = EngineSampler(self.parts.engine, self.parts.loaded.tokenizer, self.config.data.template)
        sampler = SharedSampler(whole, self.parts.learner.world)
        for benchmark in self.benchmarks if benchmarks is None else benchmarks:
            result = measure(benchmark, sampler=sampler, graders=self.parts.graders, config=self.config)
            self.folder.write_generations(self.progress.step, benchmark.name, result.generations)
            record = {
                "step": self.progress.step,
                "tokens/trained": self.progress.tokens_trained,
                "tokens/generated": self.progress.tokens_generated,
                "set": benchmark.name,
            } | result.metrics()
            self.folder.append_evaluation(record)
            self.evaluations |= _newest_evaluations([record])

    def summarise(self, status: str, reason: str = "") -> RunSummary:
        """Write `summary.json`, and return it."""
        summary = RunSummary(
            method=self.config.method,
            seed=self.config.seed,
            status=status,
            steps=self.progress.step,
            seconds=round(self.progress.seconds, 3),
            tokens={"trained": self.progress.tokens_trained, "generated": self.progress.tokens_generated},
            evaluations=self.evaluations,
            output=str(self.folder.path),
            reason=reason,
        )
        self.folder.write_summary(summary)
        return summary

    # -- at the end

    def failed(self, error: RunError) -> RunError:
        """The error, completed by the checkpoint to go on from; leaves word of it, as far as the disk lets us."""
        with contextlib.suppress(RunError):
            if isinstance(error, EngineLostError) and self._is_whole():
                self._save_checkpoint()
                self._meet()  # whichever process speaks names it
            self.summarise("failed")
        return RunError(f"{error} {describe_last(self.folder.path)}")

    def stop(self, reason: str) -> RunSummary:
        """Leave a checkpoint to go on from."""
        self._save_checkpoint()
        self._meet()
        logger.warning("stopped after step %d (%s); the same command goes on from there.", self.progress.step, reason)
        return self.summarise("stopped", reason)

    def finish(self) -> RunSummary:
        """Evaluate, and leave the trained model."""
        self.evaluate()
        self._count_seconds()
        wrapper, adapted = self.parts.learner.wrapper, has_adapter(self.parts.loaded.model)
        weights, adapter = wrapper.whole_weights(), wrapper.trained_weights() if adapted else {}
        if self._writes:
            if adapted:
                write_folder_whole(self.folder.path / "adapter", lambda folder: self._fill_adapter(folder, adapter))
            write_folder_whole(self.folder.path / "model", lambda folder: self._fill_model(folder, weights))
        self._meet()
        return self.summarise("finished")

    # -- parts of the above

    @property
    def _writes(self) -> bool:
        return self.parts.learner.world.main

    def _meet(self) -> None:
        """Wait until the process that writes has written."""
        self.parts.learner.world.gather(None)

    def _count(self, step: Step, groups: Sequence[Group]) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        self.progress.step = step.number
        self.progress.tokens_generated += sum(
            len(rollout.completion_ids) for rollout in rollouts if not rollout.off_policy
        )
        self.progress.verifier_failures += sum(rollout.failure is not None for rollout in rollouts)
        self.progress.tokens_trained = self.parts.learner.tokens_trained
        self.progress.skipped_in_a_row = self.parts.learner.skipped_in_a_row
        row = self.parts.collector.row
        self.progress.problems_drawn, self.progress.solved = row.position, dict(row.visits)

    def _is_whole(self) -> bool:
        """Whether the policy is that of the newest recorded step."""
        trained = self.parts.learner.tokens_trained
        return self.progress.step > 0 and trained == self.progress.tokens_trained

    def _count_seconds(self) -> None:
        self.progress.seconds = self._seconds_before + time.perf_counter() - self._began

    def _newest_accuracy(self) -> dict[str, float]:
        """On the first watched set, for whoever watches the run."""
        newest = self.evaluations.get(self._first_watched(), {})
        return {"accuracy": next(iter(newest.values()))["value"]} if newest else {}

    def _first_watched(self) -> str:
        return next((one.name for one in self.benchmarks if one.given in self.config.evaluation.watch), "")

    def _warn_of_mismatch(self, groups: Sequence[Group]) -> None:
        problem = groups[0].problem
        template = self.config.data.template
        layout = format_in_use(problem, self.parts.loaded.tokenizer, template, completion_format(self.config))
        mismatch = describe_mismatch(groups, self.config, layout)
        if mismatch:
            logger.warning(mismatch)

    def _warn_of_skipped(self, number: int) -> None:
        logger.warning(
            "step %d: loss or gradient is not finite, update skipped (%d of %d allowed in a row). %s",
            number,
            self.parts.learner.skipped_in_a_row,
            BAD_STEPS_IN_A_ROW,
            describe_last(self.folder.path),
        )

    def _evaluate_and_save(self, number: int) -> None:
        """What is due after a step."""
        settings = self.config.evaluation
        if settings.every and number % settings.every == 0 and number < self.phase_ends[-1]:
            self.evaluate([one for one in self.benchmarks if one.given in settings.watch])
        self._count_seconds()
        every = self.config.checkpoint_every
        if number in self.phase_ends or (every and number % every == 0):
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        learner, ready = self.parts.learner, self.parts.collector.ready
        self.folder.flush()
        keep = Retention(self.config.keep_checkpoints, self.config.keep_best_checkpoints, self._scores())
        ahead = ready.record() if ready and self._writes else None
        if learner.wrapper.saves_parts:
            save_in_parts(self.folder.path, learner, self.progress, keep, ahead)
            return
        state = WholeState.of(learner)
        if self._writes:
            save_checkpoint(self.folder.path, self.parts.loaded, state, self.progress, keep, ahead)

    def _scores(self) -> dict[int, float]:
        """Accuracy on the first watched set by step, where it is asked which checkpoint is best."""
        if not self.config.keep_best_checkpoints:
            return {}
        watched = self._first_watched()
        lines = [line for line in self.folder.evaluations() if line.get("set") == watched]
        return {line["step"]: value for line in lines for value in _accuracies(line)}

    def _fill_adapter(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        save_adapter(folder, self.parts.loaded.model, weights, shown_place(self.config.model))

    def _fill_model(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        save_model(folder, self.parts.loaded, weights)
        (folder / "README.md").write_text(model_card(self.config, self.progress, self.evaluations), encoding="utf-8")


def _newest_evaluations(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The accuracies of each set, as they were last measured."""
    return {
        str(line.get("set")): {name: value for name, value in line.items() if name.startswith("avg@")} for line in lines
    }


def _accuracies(line: Mapping[str, Any]) -> list[float]:
    return [float(value["value"]) for name, value in line.items() if name.startswith("avg@")][:1]
