"""A frozen base in 4 bits (QLoRA, arXiv 2305.14314): its linear layers in blocks of NormalFloat4, by bitsandbytes.

What leaves the trainer (the merged model, weights for engines) is dequantised, in the type of the other weights:
exactly the base that the adapter was trained beside. Nothing here is used by a run without `adapter.quantize`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from luffy.errors import ModelError

PACKED = ".weight."  # within the names of what belongs to a packed weight: its scales, its table


def loading_settings(quantize: str | None, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told; nothing where nothing is quantised. Raises ModelError without bitsandbytes.

    The scales are quantised, too ("double quantisation"), as in the paper; products are those of `dtype`.
    """
    if quantize is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"adapter.quantize={quantize}, and the package bitsandbytes is not installed: pip install "
            "'luffy-rl[qlora]', or leave adapter.quantize empty."
        )
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": settings, "device_map": {"": str(device)}}


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether any of its layers holds a packed weight."""
    return any(_is_packed(layer) for layer in model.modules())


def quantized_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The layers that hold a packed weight, by name."""
    return {name: layer for name, layer in model.named_modules() if _is_packed(layer)}


def release_file(model: torch.nn.Module) -> None:
    """Copy the weights that stay as they were read: parts of the file, they would keep all of it mapped to memory.

    On a processor alone; elsewhere they have been copied to the device. Only for a model with packed weights: one
    without lives in the mapped file.
    """
    for weight in model.parameters() if is_quantized(model) else ():
        if not hasattr(weight, "quant_state"):
            weight.data = weight.data.clone()


def keep_gradients(model: torch.nn.Module) -> None:
    """See to it that products with packed weights are exact and have a gradient in evaluation mode, too.

    On a processor with bfloat16 units bitsandbytes packs a weight anew at the first product that needs no gradient, as
    those of generation. Its products are bfloat16 from then on, and their gradient is lost without an error.
    """
    for layer in quantized_layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def plain_weight(layer: Any) -> Tensor:
    """The weight of a layer [out, in], dequantised if it is packed."""
    weight: Tensor = layer.weight
    if not _is_packed(layer):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    state = layer.weight.quant_state
    found: Tensor = dequantize_4bit(weight.detach(), state)
    return found.to(state.dtype)


def plain_layer(layer: Any, weight: Tensor) -> torch.nn.Linear:
    """A layer as torch has it, in place of one with a packed weight."""
    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return plain


def forget_quantization(model: Any) -> None:
    """A copy whose layers are plain is no quantised model any more, as the library counts it and saves it."""
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_4bit_serializable", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _is_packed(layer: Any) -> bool:
    return getattr(layer._parameters.get("weight"), "quant_state", None) is not None
