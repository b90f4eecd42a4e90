"""A finding: what was looked at, what was found, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["fine", "optional", "missing"]  # in order; not here but not needed by everybody; must be mended


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    area: str  # machine, libraries, options, devices, recipes, trial
    name: str
    found: str
    state: State = "fine"
    remedy: str = ""  # what to do, or what it is needed for
