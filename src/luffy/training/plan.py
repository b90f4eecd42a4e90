"""The steps of a run and how they lie in its phases."""

from __future__ import annotations

from dataclasses import dataclass

from luffy.algorithm import METHODS, Phase
from luffy.config import Config


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the run and where it lies in its phase."""

    number: int  # from 1, over all phases
    phase: Phase
    index: int  # from 0, within the phase


@dataclass(frozen=True, slots=True)
class Stretch:
    """A phase of a run."""

    phase: Phase
    before: int  # steps of the phases before it
    steps: int  # its own

    @property
    def end(self) -> int:
        """Its last step, counted over all phases."""
        return self.before + self.steps


def plan_phases(config: Config) -> list[Stretch]:
    """The phases of a run in their order; the last one takes `steps`."""
    phases = METHODS[config.method].phases
    lengths = [config.sft.steps] * (len(phases) - 1) + [config.steps]
    return [Stretch(phase, sum(lengths[:place]), lengths[place]) for place, phase in enumerate(phases)]
