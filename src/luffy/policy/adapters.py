"""Low-rank adapters (LoRA): a few small matrices are trained beside the frozen weights of the model.

The layers of the `peft` library are put into the model in place, so that it stays the library's own class and all paths
of the scorer hold. Nothing here is used by a run without `adapter.rank`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luffy.config import AdapterConfig, nearest
from luffy.errors import ModelError
from luffy.policy.quantization import (
    PACKED,
    forget_quantization,
    is_quantized,
    plain_layer,
    plain_weight,
    quantized_layers,
)
from luffy.policy.sharding import is_zero_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"  # peft's name of the only adapter
WEIGHTS = "adapter_model.safetensors"  # peft's name of the file
PREFIX = "base_model.model."  # what peft puts before every name in it


def check_adapter(adapter: AdapterConfig) -> None:
    """Raise ModelError where the package that an adapter needs is not installed."""
    if adapter.rank is not None and find_spec("peft") is None:
        raise ModelError(
            "adapter.rank is set, and the package peft is not installed: pip install 'luffy-rl[adapters]', or leave "
            "adapter.rank empty to train all weights."
        )


def add_adapter(model: PreTrainedModel, adapter: AdapterConfig, *, seed: int) -> None:
    """Freeze the model and put an adapter beside its linear layers, in place; it changes nothing until it is trained.

    seed: of its random first half; the other half is 0. Raises ModelError for targets that the model does not have.
    """
    check_adapter(adapter)
    from peft import LoraConfig
    from peft.functional import cast_adapter_dtype, inject_adapter_in_model

    assert adapter.rank is not None
    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=_targets(model, adapter),
        task_type="CAUSAL_LM",
    )
    training = model.training
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, adapter_name=NAME)
    cast_adapter_dtype(model, adapter_name=NAME)  # a model in half precision is adapted in float32
    model.train(training)


def has_adapter(model: torch.nn.Module) -> bool:
    """Whether `add_adapter` was applied to it."""
    return bool(getattr(model, "peft_config", None))


@contextmanager
def adapter_disabled(model: torch.nn.Module) -> Iterator[None]:
    """The model is its base for a while."""
    layers = list(_adapted_layers(model).values())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    for parameter in trained:  # peft freezes them; FSDP2, should it begin now, would see a model that learns nothing
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def trained_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """What training changes, by its names in `state_dict`: the adapter's weights, or all where there is none."""
    if not has_adapter(model):
        return _held(model)
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Weights with the adapter added to them, under the names that the base gives them; one is made at a time.

    A model without adapter gives its own, as in `state_dict`. For engines that generate with plain weights.
    """
    yield from _plain_weights(model, _merged)


def base_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The same without the adapter."""
    yield from _plain_weights(model, lambda layer: plain_weight(layer.get_base_layer()))


def _held(model: torch.nn.Module) -> dict[str, Tensor]:
    """As `state_dict` has it; what ZeRO has split stays the parameter, on which DeepSpeed writes what it is part of."""
    held = model.state_dict(keep_vars=True).items()
    return {name: weight if is_zero_part(weight) else weight.detach() for name, weight in held}


def _plain_weights(model: PreTrainedModel, of_layer: Callable[[Any], Tensor]) -> Iterator[tuple[str, Tensor]]:
    layers, packed = _adapted_layers(model), quantized_layers(model)
    for name, tensor in _held(model).items():
        if packed and PACKED in name:
            continue
        layer, _, rest = name.partition(".base_layer.")
        if rest == "weight" and layer in layers:
            yield f"{layer}.weight", of_layer(layers[layer])
        elif rest:
            yield f"{layer}.{rest}", tensor
        elif (holder := name.removesuffix(".weight")) in packed:
            yield name, plain_weight(packed[holder])
        elif not any(part in name for part in (".lora_A.", ".lora_B.")):
            yield name, tensor


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A frozen copy without adapter layers, its weights merged and none in 4 bits; tied weights stay tied."""
    replaced = {id(layer): _merged_layer(layer) for layer in _adapted_layers(model).values()}
    for name, layer in quantized_layers(model).items():
        if not name.endswith(".base_layer"):
            replaced[id(layer)] = plain_layer(layer, plain_weight(layer))
    plain: PreTrainedModel = copy.deepcopy(model, replaced)  # what it finds in `replaced` it does not copy
    if has_adapter(plain):
        del plain.peft_config
    forget_quantization(plain)
    return plain.requires_grad_(False).eval()


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and configuration without adapter and without weights, to be saved with given ones."""
    with torch.device("meta"):
        bare: PreTrainedModel = type(model)(model.config).to(model.dtype)
    bare.generation_config = model.generation_config
    return bare


def save_adapter(folder: Path, model: PreTrainedModel, weights: Mapping[str, Tensor], base: str) -> None:
    """Write the adapter alone, as peft's `PeftModel.from_pretrained` reads it.

    weights: at least those of the adapter, each whole, by their names in the model. base: how the base model is called.
    """
    from peft.functional import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    settings = copy.copy(model.peft_config[NAME])
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.target_modules = sorted(settings.target_modules)
    settings.save_pretrained(str(folder))
    weights = {
        f"{PREFIX}{name}": tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(
            model, dict(weights), adapter_name=NAME, save_embedding_layers=False
        ).items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def load_adapter(folder: Path, model: PreTrainedModel) -> None:
    """Put a saved adapter into the one that the model has. Raises ValueError where the two have other weights."""
    from peft.functional import get_peft_model_state_dict

    ours = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    saved = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    if saved.keys() != ours.keys():
        raise ValueError(f"the adapter has other weights than the run: {min(saved.keys() ^ ours.keys())}")
    with torch.no_grad():
        for name, tensor in saved.items():
            ours[name].copy_(tensor)


def _targets(model: PreTrainedModel, adapter: AdapterConfig) -> str | list[str]:
    """What peft is to adapt; names are checked, since it passes over those that it does not find."""
    if not adapter.targets:
        return "all-linear"  # of the blocks: it leaves the output head alone
    head = model.get_output_embeddings()
    linear = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    ]
    leaves = sorted({name.rpartition(".")[2] for name in linear})
    for wanted in adapter.targets:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            raise ModelError(
                f"adapter.targets: the blocks have no linear layer {wanted!r}.{nearest(wanted, leaves)} "
                f"There are: {', '.join(leaves)}."
            )
    return list(adapter.targets)


def _adapted_layers(model: torch.nn.Module) -> dict[str, Any]:
    if not has_adapter(model):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def _merged(layer: Any) -> Tensor:
    """The weight of a layer with its adapter added, in the precision of the base."""
    weight = plain_weight(layer.get_base_layer())
    delta: Tensor = layer.get_delta_weight(NAME)
    return (weight + delta).to(weight.dtype)


def _merged_layer(layer: Any) -> torch.nn.Module:
    base = layer.get_base_layer()
    if is_quantized(base):
        return plain_layer(base, _merged(layer))
    plain: torch.nn.Module = copy.copy(base)
    plain._parameters = dict(base._parameters)
    plain._parameters["weight"] = torch.nn.Parameter(_merged(layer), requires_grad=False)
    return copy.deepcopy(plain)
