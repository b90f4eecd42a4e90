"""The methods as records: how LUFFY and its rivals differ, in a few choices each.

Read `METHODS["luffy"]` beside `METHODS["on_policy"]` to see what LUFFY is. A new method is a new record and, at most,
one new pure function in this package. Numbers (gamma, clip range, coefficients, learning rates) are configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TraceRole = Literal["group", "supervised", "none"]
Baseline = Literal["group", "on_policy"]
Phase = Literal["sft", "rl"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to learn from sampled rollouts and expert traces.

    The fields below `phases` describe the reinforcement phase; a method without one leaves them at their defaults.
    """

    summary: str  # one sentence for `luffy methods` and the report
    source: str  # where the method, or this form of it, is published
    phases: tuple[Phase, ...] = ("rl",)  # in this order; "sft" is supervised learning on the traces
    traces: TraceRole = "none"  # trace tokens enter as members of the group, by a supervised term, or not at all
    baseline: Baseline = "group"  # mean reward over the whole group, or over its sampled rollouts only
    shaping: str = "none"  # f of the importance ratio of trace tokens, a name in `SHAPINGS`
    sampled_shaping: str = "none"  # the same for sampled tokens: f(p) / f(p_behavior)
    clip: bool = False  # PPO's clipped surrogate on sampled tokens; trace tokens are never clipped

    @property
    def learns_from_traces(self) -> bool:
        """Whether any phase uses the traces."""
        return self.traces != "none" or "sft" in self.phases


PAPER = "arXiv 2504.14945"

METHODS: dict[str, Method] = {
    "on_policy": Method(
        "GRPO on the model's own rollouts alone (Dr. GRPO form).",
        f"{PAPER}, Table 1, On-Policy RL",
        clip=True,
    ),
    "luffy": Method(
        "Traces join the group; their tokens are weighted by the shaped ratio; nothing is clipped.",
        f"{PAPER}, Equations 4-6; Table 4, + Shaping + NoClip",
        traces="group",
        shaping="regularized",
    ),
    "luffy_clip": Method(
        "LUFFY with PPO's clip on the sampled tokens.",
        f"{PAPER}, Table 4, + Shaping",
        traces="group",
        shaping="regularized",
        clip=True,
    ),
    "mixed": Method(
        "Traces join the group with the plain ratio: LUFFY without policy shaping.",
        f"{PAPER}, Table 4, Mixed-Policy RL",
        traces="group",
        clip=True,
    ),
    "on_policy_shaping": Method(
        "On-policy GRPO with policy shaping on its own tokens.",
        f"{PAPER}, Table 4, On-Policy + Shaping",
        sampled_shaping="regularized",
        clip=True,
    ),
    "rl_sft": Method(
        "On-policy GRPO plus a supervised loss on the traces in the same step.",
        f"{PAPER}, Table 1, RL w/ SFT loss",
        traces="supervised",
        baseline="on_policy",
        clip=True,
    ),
    "sft": Method(
        "Supervised fine-tuning on the traces.",
        f"{PAPER}, Table 1, SFT; computed as arXiv 2604.23747 demands",
        phases=("sft",),
    ),
    "sft_rl": Method(
        "Supervised fine-tuning on the traces, then on-policy GRPO.",
        f"{PAPER}, Table 1, SFT+RL; arXiv 2604.23747",
        phases=("sft", "rl"),
        clip=True,
    ),
}
