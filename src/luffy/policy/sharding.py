"""Weights split over processes (FSDP2, or stage 3 of ZeRO), and whole again where something needs them whole.

`torch.distributed.fsdp.fully_shard` turns each parameter into a DTensor of which every process holds a part. A layer's
weights are gathered while it computes, and its gradients are summed into the parts. The embedding and the head belong
to no layer: they are whole from the forward pass to the end of the backward pass.

DeepSpeed empties each parameter and leaves its part, shape and number on it (`ds_shape`, `ds_id`); see
`luffy.training.zero`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

    from luffy.policy.scorer import Scorer


def shard(scorer: Scorer, mesh: DeviceMesh, param_dtype: torch.dtype | None = None, *, offload: bool = False) -> None:
    """Split the weights under the scorer over the mesh, in place: each decoder layer by itself, then what is left.

    Optimizers must be made afterwards: the parameters are others. Gradients are sums over the processes, not means.
    param_dtype: type in which weights are gathered and multiplied; gradients are then summed in float32.
    offload: the parts lie in the host's memory; each goes to the device while its layer computes.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    assert scorer.paths  # found out on whole weights: a trial runs the model's parts, and FSDP2 counts on the root
    policy = MixedPrecisionPolicy(param_dtype, torch.float32) if param_dtype else MixedPrecisionPolicy()
    on_gpu = mesh.device_type != "cpu"  # memory is pinned for copies to a GPU alone
    place = CPUOffloadPolicy(pin_memory=on_gpu) if offload else OffloadPolicy()
    for module in [*decoder_layers(scorer.model), scorer]:
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=place)
    for part in scorer.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no reduction with a factor


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers of the model's body, as its lists of modules name them; none where it is built otherwise."""
    lists = [child for child in model.get_decoder().children() if isinstance(child, torch.nn.ModuleList)]
    return [layer for layers in lists for layer in layers]


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all parts of one that is split; then every process has to ask for it at the same time."""
    if is_zero_part(tensor):
        from deepspeed import zero

        with zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape that `whole` gives it."""
    return torch.Size(getattr(tensor, "ds_shape", tensor.shape))


def is_zero_part(tensor: Tensor) -> bool:
    """Whether stage 3 of ZeRO has split it."""
    return hasattr(tensor, "ds_id")


def split_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as it belongs to a parameter: on its device, and split as it is."""
    there = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return there
    split = distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return split.to(parameter.device)  # parts may lie on the host while the processes compute on GPUs


def is_split(model: torch.nn.Module) -> bool:
    """Whether the model's weights are split over processes."""
    return any(isinstance(parameter, DTensor) or is_zero_part(parameter) for parameter in model.parameters())


def gathered(weights: Iterable[tuple[str, Tensor]], model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of the model by their names, one made whole after the other; those that are tied in it are one tensor."""
    tensor_of = {name: id(weight) for name, weight in model.state_dict(keep_vars=True).items()}
    uses = Counter(tensor_of.values())
    tied: dict[int, Tensor] = {}
    for name, weight in weights:
        which = tensor_of.get(name, 0)  # an adapted layer's has another name there, and is never tied
        tensor = tied[which] if which in tied else whole(weight)
        if uses[which] > 1:
            tied[which] = tensor
        yield name, tensor


def clip_gradients(parameters: Iterable[Tensor], most: float) -> float:
    """Scale all gradients down to the norm `most`. Returns the norm that they had, over all parts of split ones."""
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)
