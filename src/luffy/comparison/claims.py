"""What the paper claims, and what its critics claim, as data.

A claim says what must be larger than what, on which sets, by which measure. It is a statement about two methods (or a
method and the untrained base), true or false here, whatever it was elsewhere. Adding a claim means adding a record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from luffy.comparison.collect import BASE
from luffy.data.miniature import SETS


class Role(StrEnum):
    """What a set is for. Sets outside the miniature are all `TARGET`."""

    TARGET = "target"  # problems of the kind that was trained on
    TRANSFER = "transfer"  # out of distribution: the same skill, put differently
    SKILL = "skill"  # what the base could do before, to see forgetting
    OTHER = "other"  # shown, but no claim is about it (validation: learning rates were chosen on it)


class Measure(StrEnum):
    """The quantity that a claim compares."""

    ACCURACY = "accuracy"  # share of problems solved by the final model
    SPEED = "speed"  # mean accuracy over the whole course of the run: area under the curve of a watched set
    ENTROPY = "entropy"  # mean policy entropy over the RL steps, nats a token
    FINAL_ENTROPY = "final entropy"  # the same over the last fifth of them
    TRACE_ADVANTAGE_FALL = "fall of the trace advantage"  # mean over the first fifth of the RL steps minus the last


TRAINING = "training"  # stands in the place of a set for measures of the training itself
DIRECT: frozenset[Measure] = frozenset({Measure.ACCURACY, Measure.SPEED})  # measured on a set, paired by problem


@dataclass(frozen=True, slots=True)
class Claim:
    """Method minus rival, by a measure, lies on one side of a threshold.

    It holds if the whole confidence interval does, fails if the whole interval lies on the other side, and is undecided
    otherwise.
    """

    text: str  # a sentence of the paper's kind
    source: str  # who claims it, and where
    method: str
    rival: str  # another method, `base`, or empty: the measure itself is compared with the threshold
    measure: Measure = Measure.ACCURACY
    role: Role = Role.TARGET
    side: Literal["above", "below"] = "above"
    threshold: float = 0.0
    base_below: float = 1.0  # asked only of sets on which the base solves less than this share

    def judge(self, low: float, high: float) -> Literal["holds", "fails", "undecided"]:
        """The verdict for a confidence interval of the difference."""
        above, below = low > self.threshold, high < self.threshold
        if not (above or below):
            return "undecided"
        return "holds" if above == (self.side == "above") else "fails"


PAPER = "LUFFY, arXiv 2504.14945"
CRITICS = "SFT-then-RL outperforms mixed-policy methods, arXiv 2604.23747"
STAYS = 0.05  # "stays at the base": gains less than 5 points
UNSOLVED = 0.05  # "cannot be learned from own rollouts" is about problems of which the base solves under 5 %

CLAIMS: tuple[Claim, ...] = (
    Claim("LUFFY beats on-policy RL.", f"{PAPER}, Table 1", "luffy", "on_policy"),
    Claim("LUFFY learns problems that the base cannot solve.", f"{PAPER}, 5.2", "luffy", BASE, base_below=UNSOLVED),
    Claim(
        "On-policy RL stays at the base there (gains less than 5 points).",
        f"{PAPER}, 5.2",
        "on_policy",
        BASE,
        side="below",
        threshold=STAYS,
        base_below=UNSOLVED,
    ),
    Claim("Policy shaping beats plain mixing.", f"{PAPER}, Table 4", "luffy", "mixed"),
    Claim("Policy shaping learns faster than plain mixing.", f"{PAPER}, Fig. 6", "luffy", "mixed", Measure.SPEED),
    Claim("Policy shaping keeps more entropy over the run.", f"{PAPER}, Fig. 2", "luffy", "mixed", Measure.ENTROPY),
    Claim("Policy shaping keeps more entropy at the end.", f"{PAPER}, Fig. 2", "luffy", "mixed", Measure.FINAL_ENTROPY),
    Claim("Going without PPO's clip helps.", f"{PAPER}, Table 4", "luffy", "luffy_clip"),
    Claim("Policy shaping hurts on-policy RL.", f"{PAPER}, Table 4", "on_policy", "on_policy_shaping"),
    Claim("LUFFY beats SFT.", f"{PAPER}, Table 1", "luffy", "sft"),
    Claim("LUFFY beats RL with an SFT loss.", f"{PAPER}, Table 1", "luffy", "rl_sft"),
    Claim("LUFFY beats SFT then RL.", f"{PAPER}, Table 1", "luffy", "sft_rl"),
    Claim("SFT then RL beats LUFFY.", CRITICS, "sft_rl", "luffy"),
    Claim("LUFFY generalises better than SFT.", f"{PAPER}, Table 1, OOD", "luffy", "sft", role=Role.TRANSFER),
    Claim(
        "LUFFY generalises better than SFT then RL.", f"{PAPER}, Table 1, OOD", "luffy", "sft_rl", role=Role.TRANSFER
    ),
    Claim("SFT then RL generalises better than LUFFY.", CRITICS, "sft_rl", "luffy", role=Role.TRANSFER),
    Claim("LUFFY generalises better than on-policy RL.", f"{PAPER}, Table 1", "luffy", "on_policy", role=Role.TRANSFER),
    Claim("LUFFY forgets less than SFT.", f"{PAPER}, 1", "luffy", "sft", role=Role.SKILL),
    Claim("LUFFY forgets less than SFT then RL.", f"{PAPER}, 1", "luffy", "sft_rl", role=Role.SKILL),
    Claim(
        "The traces' advantage falls as the policy gets better.",
        f"{PAPER}, 3.2",
        "luffy",
        "",
        Measure.TRACE_ADVANTAGE_FALL,
    ),
)


def set_roles(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Role]:
    """What each set is for, in a comparison with this (nested) configuration.

    On the miniature, the target is the set whose chains are as long as those trained on: `short` where nothing longer
    was trained, else `hard`. All other problems put in the trained heading or another are transfer.
    """
    dials = (config.get("data") or {}).get("miniature") or {}
    trained_on_short = int(dials.get("longest") or SETS["hard"][2]) <= SETS["short"][2]
    target = "short" if trained_on_short else "hard"
    roles = dict.fromkeys(("hard", "longer", "other_heading"), Role.TRANSFER)
    roles |= {"worked": Role.SKILL, "unrelated": Role.SKILL, "short": Role.OTHER, "validation": Role.OTHER}
    roles[target] = Role.TARGET
    return {
        name: roles.get(name.removeprefix("miniature/"), Role.OTHER) if name.startswith("miniature/") else Role.TARGET
        for name in names
    }
