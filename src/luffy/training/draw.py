"""What a step is drawn from: endless rows of shuffled epochs.

What stands at a place of a row depends on the seed alone. A step of fixed size is thus known by its number; a row of
problems that is drawn from in varying numbers needs its position, and which problems are solved, to be gone on with.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from luffy.types import Group

if TYPE_CHECKING:
    from luffy.data import EncodedProblem

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def seed_of(*parts: object) -> int:
    """A 63-bit seed from a purpose and numbers, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw(items: Sequence[Item], step: int, count: int, *parts: object) -> list[Item]:
    """The `count` items of step `step` (from 0) in an endless row of shuffled epochs; `parts` seed the shuffles."""
    return [_item_at(items, position, *parts) for position in range(step * count, (step + 1) * count)]


class ProblemRow:
    """An endless row of shuffled epochs of the problems, from which solved ones may be left out."""

    def __init__(
        self,
        problems: Sequence[EncodedProblem],
        *,
        seed: int,
        least: int,
        drop_solved: int = 0,
        position: int = 0,
        visits: Mapping[str, int] | None = None,
    ) -> None:
        """The row of `seed` from `position` on.

        drop_solved: visits in a row with nothing but right rollouts after which a problem is left out; 0: never.
        least: so many problems always remain, those of a step; before they would be fewer, all come back.
        visits: how often in a row each problem has been solved so far, by its id.
        """
        self.problems = problems
        self.position = position  # problems passed since the beginning of the row
        self.visits = dict(visits or {})
        self._seed, self._least, self._drop_solved = seed, least, drop_solved
        if drop_solved and len(problems) <= least:
            logger.warning(
                "data.drop_solved=%d has no effect: a step takes %d problems, and there are %d.",
                drop_solved,
                least,
                len(problems),
            )

    @property
    def solved(self) -> int:
        """How many problems are left out."""
        return sum(map(self._left_out, self.visits))

    def draw(self, count: int) -> list[EncodedProblem]:
        """The next `count` problems that are not left out."""
        drawn: list[EncodedProblem] = []
        while len(drawn) < count:
            problem = _item_at(self.problems, self.position, "problems", self._seed)
            self.position += 1
            if not self._left_out(problem.problem.id):
                drawn.append(problem)
        return drawn

    def note(self, groups: Sequence[Group]) -> None:
        """Count the visits that groups were, where solved problems are to be left out."""
        if not self._drop_solved:
            return
        for group in groups:
            name = group.problem.id
            if all(rollout.reward for rollout in group.rollouts if not rollout.off_policy):
                self.visits[name] = self.visits.get(name, 0) + 1
            else:
                self.visits.pop(name, None)
        if len(self.problems) - self.solved < self._least:
            logger.info("%d of %d problems are solved: all come back.", self.solved, len(self.problems))
            self.visits.clear()

    def _left_out(self, name: str) -> bool:
        return 0 < self._drop_solved <= self.visits.get(name, 0)


def _item_at(items: Sequence[Item], position: int, *parts: object) -> Item:
    epoch, place = divmod(position, len(items))
    return items[_epoch_order(len(items), seed_of("epoch", epoch, *parts))[place]]


@lru_cache(maxsize=8)
def _epoch_order(length: int, seed: int) -> tuple[int, ...]:
    order = list(range(length))
    random.Random(seed).shuffle(order)
    return tuple(order)
