"""The batch of groups that a step learns from: collected for the step, or one step ahead of it.

Ahead means: while the policy is updated, a thread collects the next batch with the weights from before that update. The
engine needs weights of its own, and gets new ones only between two batches. Batches are made one after the other in
any case, so what is drawn depends on how many came before, never on timing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from luffy.algorithm import METHODS, Method
from luffy.config import Config
from luffy.rollout import Engine
from luffy.training.clock import Clock
from luffy.training.draw import ProblemRow
from luffy.training.groups import Submit, assign_advantages, collect_groups, has_signal, refuse_failing_verifier
from luffy.training.world import ALONE, World
from luffy.types import Group, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luffy.data import EncodedProblem


@dataclass(slots=True)
class Batch:
    """What was drawn for a step; empty in a step that imitates traces."""

    groups: list[Group] = field(default_factory=list)  # learned from
    replaced: list[Group] = field(default_factory=list)  # drawn as well, and left out: nothing to learn from them
    metrics: dict[str, float] = field(default_factory=dict)  # of the drawing itself

    @property
    def drawn(self) -> list[Group]:
        """All of them: what the policy does on problems as they come."""
        return self.groups + self.replaced

    def record(self) -> dict[str, Any]:
        """As JSON, without what the problems say."""
        return {
            "groups": [_group_record(group) for group in self.groups],
            "replaced": [_group_record(group) for group in self.replaced],
            "metrics": self.metrics,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any], problems: Sequence[EncodedProblem]) -> Batch:
        """From such a record and the problems that it is about."""
        by_id = {problem.problem.id: problem for problem in problems}
        groups, replaced = ([_group_of(group, by_id) for group in record[part]] for part in ("groups", "replaced"))
        return cls(groups, replaced, dict(record["metrics"]))


class Collector:
    """Makes batches, one after the other."""

    def __init__(
        self,
        row: ProblemRow,
        *,
        engine: Engine,
        submit: Submit,
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        vocabulary: int | None = None,
        world: World = ALONE,
    ) -> None:
        """vocabulary: tokens that the model knows; an engine that returns others is refused."""
        self.vocabulary, self.world = vocabulary, world
        self.row, self.engine, self.submit, self.tokenizer = row, engine, submit, tokenizer
        self.config, self.method = config, METHODS[config.method]
        self.ready: Batch | None = None  # of the next step, if it was collected ahead

    def collect(self, step: int, clock: Clock) -> Batch:
        """The batch of a step: the one collected ahead, or else one made now.

        Raises RunError when too much cannot be verified.
        """
        ready, self.ready = self.ready, None
        batch = ready or self._make(step, clock)
        if self.config.rollout.ahead:
            batch.metrics["policy/staleness"] = float(ready is not None)
        return batch

    @contextmanager
    def ahead(self, step: int | None, clock: Clock) -> Iterator[None]:
        """Make the batch of `step` while the block runs, and wait for it at the end; None: make none."""
        if step is None:
            yield
            return
        pending = _in_background(lambda: self._make(step, Clock()))
        yield
        with clock("generate"):
            self.ready = pending.result()

    def _make(self, step: int, clock: Clock) -> Batch:
        """Draw problems, collect groups, assign advantages; again in place of groups without signal, as configured.

        A batch always has `problems_per_step` groups. Where the attempts do not bring enough with signal, groups
        without it fill the rest: they have no gradient, and count in the divisor as they would have without redrawing.
        """
        wanted, drawn, missing = self.config.problems_per_step, [], self.config.problems_per_step
        for attempt in range(1 + self.config.rollout.redraw):
            groups = collect_groups(
                self.row.draw(missing),
                engine=self.engine,
                submit=self.submit,
                tokenizer=self.tokenizer,
                method=self.method,
                config=self.config,
                step=step,
                clock=clock,
                attempt=attempt,
                vocabulary=self.vocabulary,
                world=self.world,
            )
            refuse_failing_verifier(groups, self.config.reward.max_failures)
            assign_advantages(groups, self.method, self.config)
            self.row.note(groups)
            drawn += groups
            missing = wanted - sum(has_signal(group, self.method) for group in drawn)
            if not missing:
                break
        groups, replaced = _choose(drawn, wanted, self.method)
        return Batch(groups, replaced, self._metrics(drawn, missing))

    def _metrics(self, drawn: Sequence[Group], missing: int) -> dict[str, float]:
        """What dynamic sampling did, where it is asked for."""
        metrics: dict[str, float] = {}
        if self.config.rollout.redraw:
            metrics["groups/drawn"] = len(drawn)
            metrics["groups/redrawn"] = len(drawn) - self.config.problems_per_step
            metrics["groups/without_signal"] = missing
        if self.config.data.drop_solved:
            metrics["problems/solved"] = self.row.solved
        return metrics


def _choose(drawn: Sequence[Group], wanted: int, method: Method) -> tuple[list[Group], list[Group]]:
    """Those to learn from, with signal first in line, and the others; both in the order in which they were drawn."""
    by_signal = sorted(range(len(drawn)), key=lambda index: not has_signal(drawn[index], method))
    chosen = set(by_signal[:wanted])
    return (
        [group for index, group in enumerate(drawn) if index in chosen],
        [group for index, group in enumerate(drawn) if index not in chosen],
    )


def _in_background(function: Callable[[], Batch]) -> Future[Batch]:
    """Start a thread that dies with the process: a second Ctrl-C does not wait for it."""
    future: Future[Batch] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="luffy-ahead", daemon=True).start()
    return future


def _group_record(group: Group) -> dict[str, Any]:
    rollouts = [asdict(rollout) for rollout in group.rollouts]
    for rollout in rollouts:
        del rollout["prompt_ids"]
    return {"problem": group.problem.id, "rollouts": rollouts, "advantages": group.advantages}


def _group_of(record: Mapping[str, Any], problems: Mapping[str, EncodedProblem]) -> Group:
    problem = problems[record["problem"]]
    rollouts = [Rollout(prompt_ids=problem.prompt_ids, **rollout) for rollout in record["rollouts"]]
    return Group(problem.problem, rollouts, list(record["advantages"]))
