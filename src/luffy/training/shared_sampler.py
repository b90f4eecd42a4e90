"""An evaluation's answers, made by all processes of a run: each samples its share of the problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from luffy.evaluation.samplers import Sample, Sampler
from luffy.rollout import Sampling
from luffy.training.world import World, in_order
from luffy.types import Problem


class SharedSampler:
    """Samples what one process would sample, and hands it to all."""

    def __init__(self, sampler: Sampler, world: World) -> None:
        """sampler: of this process; its noise goes by `Sampling.first`."""
        self.sampler, self.world = sampler, world

    def sample(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        share = self.world.share(len(problems))

        def sample_share() -> list[list[Sample]]:
            mine = problems[share.start : share.stop]
            return self.sampler.sample(mine, n, replace(sampling, first=sampling.first + share.start)) if mine else []

        return in_order(self.world.together(sample_share))
