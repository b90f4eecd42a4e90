"""A run while it lasts: its parts, and the steps that are left."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from luffy.config import Config
from luffy.data import LoadedProblems
from luffy.evaluation import Benchmark
from luffy.policy import load_model
from luffy.policy.adapters import add_adapter, check_adapter
from luffy.reward.graders import Graders
from luffy.rollout import Engine
from luffy.training.checkpoint import Progress, load_optimizer, load_weights, read_progress, take_up_checkpoint
from luffy.training.draw import draw, seed_of
from luffy.training.groups import trace_rollout
from luffy.training.learner import Learner
from luffy.training.look import Look
from luffy.training.plan import Step, plan_phases
from luffy.training.preparation import open_collector, open_engine, prepare_data
from luffy.training.recorder import OnStep, Parts, Recorder
from luffy.training.run_folder import Folder, RunSummary
from luffy.training.world import ALONE, World
from luffy.training.zero import check_zero
from luffy.types import Rollout

logger = logging.getLogger(__name__)


class Run:
    """A run while it lasts: its parts, and the steps that are left."""

    def __init__(
        self,
        config: Config,
        folder: Folder,
        source: LoadedProblems,
        benchmarks: Sequence[Benchmark],
        graders: Graders,
        on_step: OnStep | None,
        world: World = ALONE,
    ) -> None:
        self.config, self.folder, self.source = config, folder, source
        self.benchmarks, self.graders, self.on_step = benchmarks, graders, on_step
        self.world = world
        self.phases = plan_phases(config)

    @property
    def total_steps(self) -> int:
        """Steps over all phases."""
        return self.phases[-1].end

    def finished_summary(self) -> RunSummary | None:
        """The summary of this run if it has already come to its end."""
        summary = self.folder.summary()
        if summary and summary.status == "finished" and summary.steps >= self.total_steps:
            logger.info(
                "%s: this run is already finished (%d steps). A larger steps= goes on from there.",
                self.folder.path,
                summary.steps,
            )
            return summary
        return None

    def prepare(self) -> None:
        """Load model, data and benchmarks; take up the newest whole checkpoint, or evaluate the base."""
        began = time.perf_counter()
        check_adapter(self.config.adapter)
        check_zero(self.config)
        loaded = load_model(self.config.model, self.config.policy, quantize=self.config.adapter.quantize)
        if self.config.adapter.rank is not None:
            add_adapter(loaded.model, self.config.adapter, seed=seed_of("adapter", self.config.seed))
        pool = self.graders.pool()
        problems, self.traces = prepare_data(self.config, self.source, loaded, pool.verify_all)
        self.learner = Learner(loaded, self.config, self.world)
        sharded = self.learner.wrapper.sharded
        self.engine = open_engine(self.config, loaded, self.learner.autocast, sharded=sharded, world=self.world)
        self.checkpoint, progress = self.world.from_main(self._take_up)
        if self.checkpoint:
            load_weights(self.checkpoint, loaded, self.world)
            self.engine.update_weights(loaded.model)
        self.learner.tokens_trained = progress.tokens_trained
        self.learner.skipped_in_a_row = progress.skipped_in_a_row
        self.folder.cut_after(progress.step if self.checkpoint else -1)
        self.collector = open_collector(
            self.config,
            problems,
            progress,
            self.checkpoint,
            engine=self.engine,
            submit=pool.submit,
            loaded=loaded,
            world=self.world,
        )
        self.look = Look(self.config, self.folder, self.learner.wrapper, loaded.tokenizer, self.traces)
        parts = Parts(loaded, self.learner, self.engine, self.collector, self.graders)
        self.recorder = Recorder(self.config, self.folder, parts, progress, self.benchmarks, self.on_step, began=began)
        if self.checkpoint:
            self._say_how_it_goes_on(progress.step, loaded.model.device.type)
        else:
            self.recorder.evaluate()
        self.recorder.summarise("running")

    def _take_up(self) -> tuple[Path | None, Progress]:
        checkpoint = take_up_checkpoint(self.folder.path)
        return checkpoint, read_progress(checkpoint) if checkpoint else Progress()

    def close(self) -> None:
        """Free what the engine holds, if it was opened."""
        engine: Engine | None = getattr(self, "engine", None)  # absent where preparing failed before
        if engine is not None:
            engine.close()

    def steps_left(self) -> Iterator[Step]:
        """The steps not yet done; each phase begins with an optimizer of its own."""
        done = self.recorder.progress
        for stretch in self.phases:
            for index in range(max(0, done.step - stretch.before), stretch.steps):
                if self.learner.phase_begin != stretch.before:
                    self.learner.start_phase(stretch.phase, stretch.before, stretch.steps)
                    if index > 0 and self.checkpoint is not None:
                        load_optimizer(self.checkpoint, self.learner)
                yield Step(stretch.before + index + 1, stretch.phase, index)

    def next_ahead(self, step: Step) -> int | None:
        """The step whose groups are to be collected while this one updates, if any."""
        return step.number + 1 if self.config.rollout.ahead and step.number < self.total_steps else None

    def draw_traces(self, step: Step) -> list[Rollout]:
        """The traces of a supervised step."""
        drawn = draw(self.traces, step.index, self.config.sft.batch_size, "traces", self.config.seed)
        return [trace_rollout(problem, trace) for problem, trace in drawn]

    def _say_how_it_goes_on(self, step: int, device: str) -> None:
        """Where it goes on, and what keeps it from being bitwise the run that was never interrupted."""
        logger.info("%s: going on after step %d.", self.folder.path, step)
        if self.folder.differences:
            logger.warning(
                "the steps from here on may differ from those of a run never interrupted: %s.",
                "; ".join(self.folder.differences),
            )
        elif device != "cpu":
            logger.warning(
                "the steps from here on may differ in the last digits from those of a run never interrupted: the "
                "kernels of %s do not always add up in the same order.",
                device,
            )
