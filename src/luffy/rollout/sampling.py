"""Drawing tokens from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from luffy.rollout.engine import Sampling


def draw_tokens(logits: Tensor, sampling: Sampling, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    logits: [rows, vocabulary]. noise: [rows], uniform in [0, 1); None for greedy decoding.
    Returns tokens [rows] and their log-probs [rows] at the sampling temperature, before top-p truncation.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    largest, most_likely = logits.max(dim=-1, keepdim=True)
    weights = (logits - largest).exp_()  # probabilities times a constant
    if noise is None:
        total, drawn = weights.sum(dim=-1, keepdim=True), most_likely
    elif sampling.top_p < 1:
        total = weights.sum(dim=-1, keepdim=True)
        drawn = _invert(keep_nucleus(weights.div_(total), sampling.top_p).cumsum_(dim=-1), noise)
    else:
        cumulative = weights.cumsum_(dim=-1)
        total, drawn = cumulative[:, -1:], _invert(cumulative, noise)
    logprobs = logits.gather(-1, drawn) - largest - total.log()
    return drawn.squeeze(-1), logprobs.squeeze(-1)


def keep_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Set to 0 what lies outside the smallest set of most likely tokens that holds `top_p`. [rows, vocabulary]."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_p
    return probabilities.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)


def _invert(cumulative: Tensor, noise: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds the noise's share of the total; one of weight 0 never is.

    cumulative: [rows, vocabulary]. noise: [rows]. Returns [rows, 1].
    """
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding may make the share the total itself
    share = torch.minimum(noise[:, None] * total, below)
    last = cumulative.shape[-1] - 1  # of a model that writes no numbers any more, the last token is drawn
    return torch.searchsorted(cumulative, share, right=True).clamp_(max=last)
