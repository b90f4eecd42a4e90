"""What a rollout is worth compared with its group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from luffy.algorithm.methods import Baseline

STD_FLOOR = 1e-6  # as in the original: added to the standard deviation


def group_advantages(
    rewards: Tensor | Sequence[float],
    off_policy: Tensor | Sequence[bool],
    *,
    baseline: Baseline = "group",
    scale: Literal["none", "std"] = "none",
) -> Tensor:
    """Advantages of the rollouts of one group: A_i = r_i - mean(r), traces included in the mean.

    rewards: [n]. off_policy: [n], True for expert traces. Returns [n] in the precision of `rewards`.
    baseline: `group` takes mean and deviation over all n rollouts (LUFFY); `on_policy` over the sampled ones (RL with
    an SFT loss, where traces are no members of the group).
    scale: `std` divides by the sample standard deviation + 1e-6 (GRPO), where one of exactly 0 counts as 1; `none` does
    not divide (Dr. GRPO, and the paper's experiments).
    A baseline over fewer than two rollouts has mean 0 and standard deviation 1, as in the original, so that nothing is
    ever infinite.
    Raises ValueError for shapes or names that do not fit.
    Source: LUFFY, arXiv 2504.14945, Equation 4 and Section 4; Dr. GRPO, arXiv 2503.20783.
    """
    values = torch.as_tensor(rewards)
    values = values if values.is_floating_point() else values.float()
    is_trace = torch.as_tensor(off_policy, dtype=torch.bool, device=values.device)
    if values.ndim != 1 or is_trace.shape != values.shape:
        raise ValueError(
            f"rewards and off_policy must both be [n], got {list(values.shape)} and {list(is_trace.shape)}"
        )
    if baseline not in ("group", "on_policy") or scale not in ("none", "std"):
        raise ValueError(f"unknown baseline {baseline!r} or scale {scale!r}")
    counted = values if baseline == "group" else values[~is_trace]
    if len(counted) < 2:
        return values.clone() if scale == "none" else values / (1 + STD_FLOOR)
    advantages = values - counted.mean()
    if scale == "none":
        return advantages
    deviation = counted.std()
    return advantages / (torch.where(deviation == 0, torch.ones_like(deviation), deviation) + STD_FLOOR)
