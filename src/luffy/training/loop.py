"""The training loop, in the paper's words.

    draw problems -> collect groups (own rollouts and traces) -> assign advantages -> update -> synchronise -> log

In an SFT phase a step imitates traces instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from luffy.config import Config
from luffy.data import HOLDOUT, LoadedProblems, hold_out, load_training_problems
from luffy.errors import DataError, RunError
from luffy.evaluation import describe_overlap, load_benchmarks
from luffy.planning.shortage import shortage_explained
from luffy.reward.graders import Graders
from luffy.training.clock import Clock
from luffy.training.collector import Batch
from luffy.training.interrupt import Interrupt
from luffy.training.recorder import OnStep
from luffy.training.run import Run
from luffy.training.run_folder import RunSummary, open_folder
from luffy.training.trackers import Trackers
from luffy.training.world import World, disconnect
from luffy.types import Problem

logger = logging.getLogger(__name__)

Reward = Callable[[str, str], bool | float]


def train(
    config: Config,
    *,
    problems: Sequence[Problem] | None = None,
    reward: Reward | None = None,
    on_step: OnStep | None = None,
) -> RunSummary:
    """Train the policy as configured; go on where an earlier start in the same folder stopped.

    problems: the training problems instead of `data.train`. reward: a function of (completion, answer) instead of the
    configured verifier; above 0.5 counts as correct. on_step: called after each step with its number, the number of
    steps in all, and its metrics, beside them the newest `accuracy` on the first set of `evaluation.watch`.
    Returns the summary that is also in `RUN/summary.json`. Raises LuffyError for what is the user's to resolve.
    Started in several processes (`accelerate launch`, torchrun), they train together; the first one writes and calls
    `on_step`.
    """
    try:
        world = World.open(config)
        return _train_in(world, config, problems, reward, on_step)
    finally:
        disconnect()


def _train_in(
    world: World,
    config: Config,
    problems: Sequence[Problem] | None,
    reward: Reward | None,
    on_step: OnStep | None,
) -> RunSummary:
    source = load_training_problems(config.data) if problems is None else LoadedProblems.of(problems)
    source, held_out = hold_out(source, config.data.holdout) if config.data.holdout else (source, [])
    sets = {HOLDOUT: held_out} if held_out else None
    benchmarks = load_benchmarks(
        config.evaluation.benchmarks, config, sets
    )  # a mistake shows before anything is written
    if len(set(world.gather(source.digest))) > 1:
        raise DataError(
            f"{config.data.train}: the processes do not read the same data. Is it the same on all machines?"
        )
    folder = open_folder(config, source.digest, world)
    try:
        for line in describe_overlap(benchmarks, source.problems, config.data.train):
            logger.warning(line)
        with Graders(config, reward) as graders, Trackers(config) as trackers:
            run = Run(
                config, folder, source, benchmarks, graders, trackers.following(on_step) if world.main else None, world
            )
            return world.from_main(run.finished_summary) or _train_and_account(run)
    finally:
        folder.close()


def _train_and_account(run: Run) -> RunSummary:
    try:
        with shortage_explained(run.config, run.world.size):
            run.prepare()
        try:
            with shortage_explained(run.config, run.world.size):
                return _train(run)
        except RunError as error:
            raise run.recorder.failed(error) from None
    finally:
        run.close()


def _train(run: Run) -> RunSummary:
    """The loop."""
    with Interrupt() as interrupt:
        for step in run.steps_left():
            clock = Clock()
            batch = Batch()
            if step.phase == "sft":
                traces = run.draw_traces(step)
                with clock("look"):
                    run.look.before_update(step, [])
                with clock("update"):
                    update = run.learner.imitate(traces, step.index)
            else:
                batch = run.collector.collect(step.number, clock)  # draw problems, collect groups, assign advantages
                with clock("look"):
                    run.look.before_update(step, batch.groups)
                with run.collector.ahead(run.next_ahead(step), clock), clock("update"):
                    update = run.learner.update(batch.groups, step.index)
            with clock("synchronise"), run.world.lost_are_named():
                run.engine.update_weights(run.learner.policy)
            run.recorder.record(step, batch, update | clock.metrics())
            if reason := next(filter(None, run.world.gather(interrupt.reason)), ""):
                return run.recorder.stop(reason)
    return run.recorder.finish()
