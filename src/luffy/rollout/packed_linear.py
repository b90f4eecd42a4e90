"""Linear layers for the few rows of a decode step, on a CPU.

A product of 7 or 56 rows with a weight of 49,152 x 576 is bound by reading the weight. The library for matrix products
reads it in an order that suits many rows; oneDNN, given the weight in its own blocked order, takes half the time or
less (docs/performance.md). A blocked copy cannot be trained, so it is made when a generation begins and given up when
it ends: it needs the room that gradients and activations leave free meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luffy.policy.precision import multiplies_bfloat16

LEAST_ELEMENTS = 2**16  # of a weight; smaller ones stay in the cache of the processor, and the call itself costs more
LEAST_TOKENS = 16  # of a completion; laying the weights out takes as long as some eight decode steps save
ROWS = 8  # what oneDNN chooses its order for; the same order serves 1 to 256 rows


@contextmanager
def packed_linears(model: nn.Module, tokens: int) -> Iterator[None]:
    """Within the block, large layers on a CPU multiply by blocked copies of their weights as of its beginning.

    tokens: how many will be decoded at most. Wherever a gradient is recorded, and wherever torch comes without oneDNN,
    layers are as ever.
    """
    pays = tokens >= LEAST_TOKENS and _has_onednn()
    layers: list[Any] = [module for module in model.modules() if pays and _gains(module)]
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        layer.forward = partial(_multiply, layer, packed)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the method of its class again


def _gains(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    suits = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16(weight.device))
    return weight.device.type == "cpu" and suits and weight.numel() >= LEAST_ELEMENTS


def _has_onednn() -> bool:
    usable = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return usable and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _multiply(layer: nn.Linear, packed: Tensor, rows: Tensor) -> Tensor:
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return nn.Linear.forward(layer, rows)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, layer.bias, "none", [], "")
    return product
