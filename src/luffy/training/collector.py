"""The batch of groups that a step learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luffy.algorithm import METHODS, Method
from luffy.config import Config
from luffy.rollout import Engine
from luffy.training.clock import Clock
from luffy.training.draw import ProblemRow
from luffy.training.groups import Submit, assign_advantages, collect_groups, has_signal, refuse_failing_verifier
from luffy.types import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    ) -> None:
        self.row, self.engine, self.submit, self.tokenizer = row, engine, submit, tokenizer
        self.config, self.method = config, METHODS[config.method]

    def collect(self, step: int, clock: Clock) -> Batch:
        """Draw problems, collect groups, assign advantages; again in place of groups without signal, as configured.

        A batch always has `problems_per_step` groups. Where the attempts do not bring enough with signal, groups
        without it fill the rest: they have no gradient, and count in the divisor as they would have without redrawing.
        Raises RunError when too much cannot be verified.
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
