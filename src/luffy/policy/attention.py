"""Attention that a caller plans: how tokens attend is decided once a batch, not by masks in every layer.

Transformers looks attention up by name. Under `PLANNED`, a model's forward pass that is given `attention_plan=plan`
calls the plan in every layer; without a plan the library's own `sdpa` attention runs, masks and all. A plan is handed
through the forward pass as a keyword, so that recomputation in the backward pass sees it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLANNED = "planned"


class AttentionPlan(Protocol):
    """Which tokens attend to which, and how that is computed fast."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, sliding_window: int | None
    ) -> Tensor:
        """Attention of one layer.

        query: [rows, heads, tokens, width]. key, value: [rows, key heads, tokens, width], what the layer's cache
        returned if there is one. scaling: of the products, None: 1 / sqrt(width). sliding_window: how many tokens back,
        itself included, a token attends to. Returns [rows, tokens, heads, width].
        """
        ...


def plan_attention(model: PreTrainedModel) -> bool:
    """Let the model take attention plans; False where it does not use the library's replaceable `sdpa` attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == PLANNED:
        return True
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return False
    AttentionInterface.register(PLANNED, _planned_or_sdpa)
    AttentionMaskInterface.register(PLANNED, sdpa_mask)
    model.set_attn_implementation(PLANNED)
    return True


def no_mask(device: torch.device) -> Tensor:
    """What stands in for the mask when a plan decides: four axes, so that the library takes it for a finished one."""
    return torch.empty(1, 1, 1, 1, device=device)


def _planned_or_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_plan: AttentionPlan | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in every layer."""
    if attention_plan is not None:
        refuse_unknown(others)
        return attention_plan.attend(query, key, value, scaling=scaling, sliding_window=sliding_window), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **others
    )
    return output


def refuse_unknown(others: dict[str, Any]) -> None:
    """A layer that asks for more than plain attention must not silently get less. Raises NotImplementedError."""
    special = [name for name in ("softcap", "s_aux", "position_bias", "cache") if others.get(name) is not None]
    if special or others.get("is_causal") is False:
        raise NotImplementedError(f"attention with {', '.join(special) or 'no causal order'} cannot be planned")
