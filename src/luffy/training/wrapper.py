"""How the gradients of several processes are summed: by copies of the policy (DDP), or by parts of it (FSDP2).

By DeepSpeed's ZeRO: see `luffy.training.zero`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from luffy.config import Config
from luffy.policy.adapters import has_adapter, merged_weights, trained_weights
from luffy.policy.sharding import clip_gradients, gathered, is_split, shard, split_like, whole
from luffy.training.world import World

if TYPE_CHECKING:
    from accelerate import Accelerator

    from luffy.policy import Scorer, TokenScores


class Wrapper:
    """The scorer of the policy as several processes compute with it."""

    def __init__(self, scorer: Scorer, reference: Scorer | None, config: Config, world: World) -> None:
        """Nothing is wrapped yet: until then every process has the whole policy to itself."""
        self.scorer, self.reference, self.config, self.world = scorer, reference, config, world
        self.sharded = world.size > 1 and config.parallel.splits_weights
        self.saves_parts = self.sharded and config.parallel.checkpoint == "sharded"
        self.module: Any = None  # what is called in place of the scorer

    def wrap(self, accelerator: Accelerator) -> None:
        """Wrap it, once; all processes go on from the weights of the first. An optimizer has to be made after this."""
        if self.module is not None:
            return
        self.accelerator = accelerator
        with self.world.lost_are_named():
            self._begin_alike()
            if self.sharded:
                self._split()
            self.module = self.scorer if self.sharded else accelerator.prepare(self.scorer)

    def new_optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW on what is trained, with nothing learned yet; only after `wrap`. rate: the learning rate."""
        optimizer: torch.optim.Optimizer = self.accelerator.prepare(self._adamw(rate))
        return optimizer

    def score(self, *given: Any, **named: Any) -> TokenScores:
        """What the scorer says, where nothing is to be learned from it."""
        scores: TokenScores = self.scorer(*given, **named)
        return scores

    def sums(self, *, last: bool) -> Any:
        """The context of a micro-batch. last: of this optimizer step; then gradients are summed at its end.

        Gradients of a split policy are summed after every micro-batch: kept whole until the last, they would fill the
        memory.
        """
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(self.module)

    def backward(self, loss: Tensor, measured: float) -> None:  # noqa: ARG002  ZeRO has to know it here
        """Add the gradient of this process's loss; what is summed is the loss of all processes.

        measured: what the loss was made of; if it is not finite, `step` will be told so.
        """
        self.accelerator.backward(loss if self.sharded else loss * self.world.size)  # DDP takes the mean

    def step(self, optimizer: torch.optim.Optimizer, most: float, *, sound: bool) -> float | None:
        """Scale the gradient down to the norm `most` and take the step, unless it is not finite, or not `sound`.

        Gradients are cleared in any case. Returns the norm that the gradient had; None where no step was taken.
        """
        self._settle()
        parameters = self.parameters
        for parameter in parameters:  # no row may have contributed: a gradient of zero, not of None
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = clip_gradients(parameters, most)
        taken = sound and math.isfinite(norm)
        if taken:
            optimizer.step()
        optimizer.zero_grad()
        return norm if taken else None

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, in the order by which a checkpoint numbers it."""
        return [parameter for parameter in self.scorer.model.parameters() if parameter.requires_grad]

    def whole_weights(self) -> dict[str, Tensor]:
        """The policy's weights by name, an adapter merged into them.

        Split ones are gathered, by all processes, and kept by the one that writes; so in the next two.
        """
        policy = self.scorer.model
        return self._whole(merged_weights(policy)) if has_adapter(policy) else self.trained_weights()

    def trained_weights(self) -> dict[str, Tensor]:
        """Those that training changes, under the policy's own names: all, or the adapter's alone."""
        return self._whole(trained_weights(self.scorer.model).items())

    def whole_moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """AdamW's moments as `index.name`, index: place of the parameter in the optimizer."""
        with self.world.lost_are_named():
            return self._kept(
                (f"{index}.{name}", whole(value.detach()))
                for index, parameter in enumerate(self.parameters)
                for name, value in optimizer.state.get(parameter, {}).items()
            )

    def put_moments(self, optimizer: torch.optim.Optimizer, moments: Iterable[tuple[str, Tensor]]) -> None:
        """The inverse, on all processes; moments: whole ones, one after the other."""
        parameters = self.parameters
        for place, value in moments:
            index, _, name = place.partition(".")
            self._put_moment(optimizer, parameters[int(index)], name, value)

    def _put_moment(self, optimizer: torch.optim.Optimizer, parameter: Any, name: str, value: Tensor) -> None:
        moment = value.to(parameter.device) if name == "step" else split_like(value, parameter)
        optimizer.state.setdefault(parameter, {})[name] = moment

    def _adamw(self, rate: float) -> torch.optim.AdamW:
        settings = self.config.optimizer
        return torch.optim.AdamW(
            self.parameters,
            lr=rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def _settle(self) -> None:
        """Before the optimizer looks at parameters: where nothing but scoring went before, some are still whole."""
        if self.sharded:
            self.module.reshard()

    def _scorers(self) -> list[Scorer]:
        """Of the policy and of the reference; under an adapter they are one."""
        return list(dict.fromkeys(filter(None, (self.scorer, self.reference))))

    def _begin_alike(self) -> None:
        """All processes have the weights of the first."""
        if self.world.size == 1:
            return
        for scorer in self._scorers():
            for weight in (*scorer.parameters(), *scorer.buffers()):
                dist.broadcast(weight.detach(), src=0)

    def _split(self) -> None:
        mesh = init_device_mesh(self.scorer.model.device.type, (self.world.size,))
        param_dtype = torch.bfloat16 if self.config.parallel.param_dtype == "bfloat16" else None
        for scorer in self._scorers():
            shard(scorer, mesh, param_dtype, offload=self.config.parallel.offload)

    def _whole(self, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        policy = self.scorer.model
        if not is_split(policy):
            return {name: weight.detach() for name, weight in weights}
        with self.world.lost_are_named():
            return self._kept(gathered(weights, policy))

    def _kept(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """On the CPU, by the process that writes; tensors that are one stay one, so that a file holds them once."""
        kept: dict[str, Tensor] = {}
        moved: dict[int, tuple[Tensor, Tensor]] = {}  # with the original, so that its id stays its own
        for name, tensor in tensors:
            if self.world.main:
                kept[name] = moved.setdefault(id(tensor), (tensor, tensor.cpu().contiguous()))[1]
        return kept
