"""Linear layers for the few rows of a decode step, on a CPU.

A product of 7 or 56 rows with a weight of 49,152 x 576 is bound by reading the weight. The library for matrix products
reads it in an order that suits many rows; oneDNN, given the weight in its own blocked order, takes half the time or
less (docs/performance.md). A blocked copy cannot be trained, so it is made when a generation begins and given up when
it ends: it needs the room that gradients and activations leave free meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luffy.policy.precision import multiplies_bfloat16

LEAST_ELEMENTS = 2**16  # of a weight; smaller ones stay in the cache of the processor, and the call itself costs more
LEAST_TOKENS = 16  # of a completion; laying the weights out takes as long as some eight decode steps save
LARGEST_COPY = 2**22  # elements of joined weights that are copied though nothing is gained but calls
ROWS = 8  # what oneDNN chooses its order for; the same order serves 1 to 256 rows


@contextmanager
def packed_linears(model: nn.Module, tokens: int) -> Iterator[None]:
    """Within the block, large layers on a CPU multiply by blocked copies of their weights as of its beginning.

    tokens: how many will be decoded at most. Wherever a gradient is recorded, and wherever torch comes without oneDNN,
    layers are as ever.
    """
    pays = tokens >= LEAST_TOKENS
    layers: list[Any] = [module for module in model.modules() if pays and _gains(module)]
    for layer in layers:
        layer.forward = partial(_multiply, layer, _packed(layer.weight))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the method of its class again


@torch.no_grad()
def joined(layers: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    """What layers that read the same rows give, side by side: one product by a copy of their weights as of now.

    Where a copy would be large and no faster, the layers multiply one after the other. For use without gradients.
    """
    if len(layers) > 1 and sum(layer.weight.numel() for layer in layers) > LARGEST_COPY and not _gains(layers[0]):
        return lambda rows: torch.cat([layer(rows) for layer in layers], dim=-1)
    weight = _side_by_side([layer.weight for layer in layers])
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    bias = _side_by_side(biases) if any(layer.bias is not None for layer in layers) else None
    if _suits(weight):
        packed = _packed(weight)
        return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return partial(nn.functional.linear, weight=weight, bias=bias)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach() for part in parts]) if len(parts) > 1 else parts[0].detach()


def _gains(module: nn.Module) -> bool:
    return type(module) is nn.Linear and "forward" not in vars(module) and _suits(module.weight)


def _suits(weight: Tensor) -> bool:
    fast = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16(weight.device))
    return weight.device.type == "cpu" and fast and weight.numel() >= LEAST_ELEMENTS and _has_onednn()


def _packed(weight: Tensor) -> Tensor:
    blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return blocked


def _has_onednn() -> bool:
    usable = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return usable and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _multiply(layer: nn.Linear, packed: Tensor, rows: Tensor) -> Tensor:
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return nn.Linear.forward(layer, rows)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, layer.bias, "none", [], "")
    return product
