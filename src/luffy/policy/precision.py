"""Whether matrix products are computed in bfloat16: where the processor multiplies it faster, and the model is large.

Weights stay what they are; norms, softmax, log-probs and the loss are float32. On a CPU with bfloat16 units (AMX) the
products of a 135M model were found to run eight times as fast as in float32. Without units they are emulated, and
slower by as much.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import torch

from luffy.config import AUTOCAST_FROM, PolicyConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Autocast = Literal["none", "bfloat16"]


def pick_autocast(policy: PolicyConfig, model: PreTrainedModel) -> Autocast:
    """The type of the update's products: as configured, or by device and model; what `auto` picks is logged."""
    if policy.autocast != "auto":
        return policy.autocast
    wanted = model.dtype == torch.float32 and model.num_parameters() >= AUTOCAST_FROM
    if not wanted or not multiplies_bfloat16(model.device):
        return "none"
    logger.info(
        "matrix products are computed in bfloat16, which %s does faster; policy.autocast=none keeps float32. The "
        "difference between what generates and what is trained is the metric policy/engine_gap.",
        "this processor" if model.device.type == "cpu" else "this GPU",
    )
    return "bfloat16"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for products of bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(_processor().get("amx_bf16"))


def _processor() -> dict[str, object]:
    """What the processor can do; older versions of torch do not tell, and nothing is assumed then."""
    tell = getattr(torch.cpu, "get_capabilities", dict)
    return dict(tell())
