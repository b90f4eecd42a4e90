"""DeepSpeed's ZeRO as a way to sum the gradients of several processes (`parallel.sharding=zero1` and so on).

The engine is driven by hand, not through accelerate, which would take the optimizer's step within the backward pass:
- which micro-batch is the last is said before each (`set_gradient_accumulation_boundary`); none of them is averaged;
- DeepSpeed scales the gradient down, and takes no step where its norm is not finite. A loss that is not finite is made
  to have such a gradient, since that is the one way in which DeepSpeed forgets all that it has summed up;
- its checkpoints, which are pickles, are not used: weights and moments are gathered one by one into our own.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luffy.config import Config
from luffy.errors import ModelError, RunError
from luffy.planning.zero import BUCKET, GATHERED
from luffy.policy import TokenScores
from luffy.policy.sharding import gathered
from luffy.training.world import World
from luffy.training.wrapper import Wrapper

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from luffy.policy import Scorer

ELEMENT = 4  # bytes of a number, as DeepSpeed counts numbers and the plan counts bytes
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of AdamW's two moments


def check_zero(config: Config) -> None:
    """Raise ModelError where the package that ZeRO needs is not installed."""
    if config.parallel.zero_stage and find_spec("deepspeed") is None:
        raise ModelError(
            f"parallel.sharding={config.parallel.sharding} needs the package deepspeed, which is not installed: pip "
            "install 'luffy-rl[deepspeed]', or take parallel.sharding=full, which needs nothing else."
        )


def wrapper_of(scorer: Scorer, reference: Scorer | None, config: Config, world: World) -> Wrapper:
    """The wrapper that the configuration asks for."""
    kind = ZeroWrapper if config.parallel.zero_stage and world.size > 1 else Wrapper
    return kind(scorer, reference, config, world)


class ZeroWrapper(Wrapper):
    """A wrapper around DeepSpeed's engine.

    zero1: AdamW's moments are split over the processes; zero2: gradients, too; zero3: weights, too.
    """

    def wrap(self, accelerator: Accelerator) -> None:
        """Nothing yet: DeepSpeed wants the optimizer as well."""
        self.accelerator = accelerator

    def new_optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW on what is trained, with nothing learned yet. rate: the learning rate."""
        with self.world.lost_are_named():
            if self.module is None:
                self._begin_alike()
                self._trained = super().parameters  # in their own order, before DeepSpeed flattens them
                self._optimizer = self._adamw(rate)
                self._start_engine()
            self._forget_moments()
        return self._optimizer

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, in the order by which a checkpoint numbers it."""
        return self._trained

    def score(self, *given: Any, **named: Any) -> TokenScores:
        """What the scorer says, where nothing is to be learned from it."""
        scores: TokenScores = (self.module or self.scorer)(*given, **named)
        return scores

    def sums(self, *, last: bool) -> Any:
        """The context of a micro-batch. last: of this optimizer step."""
        self.engine.set_gradient_accumulation_boundary(last)
        return super().sums(last=True)

    def backward(self, loss: Tensor, measured: float) -> None:
        """Add the gradient of this process's loss; what is summed is the loss of all processes.

        measured: what the loss was made of. If it or the loss is not finite, the gradient will not be either.
        """
        finite = 1 + 0 * (loss.detach() + measured)  # 1, or not a number; without waiting for the device
        self.engine.backward(loss * (finite * self.world.size))  # DeepSpeed takes the mean over processes

    def step(self, optimizer: torch.optim.Optimizer, most: float, *, sound: bool) -> float | None:  # noqa: ARG002
        """Take the step unless the gradient is not finite; see `Wrapper.step`. The norm `most` it has been told."""
        self.engine.step()
        if not self.engine.was_step_applied():
            return None
        norm = float(self.engine.get_global_grad_norm())
        if not (sound and math.isfinite(norm)):
            raise RuntimeError(f"DeepSpeed took a step with a gradient of norm {norm} from a loss that is not finite")
        return norm

    def whole_moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """AdamW's moments as `index.name`, index: place of the parameter in `parameters`; kept by the first process."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = next(iter(optimizer.state.values()))["step"]
        found: dict[str, Tensor] = {}
        with self.world.lost_are_named():
            for index, parameter in enumerate(self._trained):
                for name in MOMENTS:
                    moment = safe_get_full_optimizer_state(parameter, name)  # of all processes together
                    if self.world.main:
                        found[f"{index}.{name}"] = moment.cpu()
                if self.world.main:
                    found[f"{index}.step"] = steps.cpu().clone()
        return found

    def _put_moment(self, optimizer: torch.optim.Optimizer, parameter: Any, name: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if name == "step":
            for state in optimizer.state.values():
                state["step"].copy_(value)
        elif not self.sharded:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), name)
        else:
            size = parameter.ds_tensor.numel()  # of each process's part; the last one is filled up with zeros
            filled = torch.nn.functional.pad(value.flatten(), (0, size * self.world.size - value.numel()))
            part = filled[size * self.world.rank :][:size]
            safe_set_local_optimizer_state(parameter, part.to(parameter.device), name)

    def _whole(self, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies, since those of DeepSpeed are parts of one long tensor, which no file of tensors takes."""
        with self.world.lost_are_named():
            kept = self._kept(gathered(weights, self.scorer.model))
        copies = {id(tensor): tensor.clone() for tensor in kept.values()}
        return {name: copies[id(tensor)] for name, tensor in kept.items()}

    def _start_engine(self) -> None:
        package = _load_deepspeed()
        assert self.scorer.paths  # found out on whole weights
        self.engine, *_ = package.initialize(
            model=_Tuples(self.scorer),
            optimizer=self._optimizer,
            model_parameters=self._trained,
            config=engine_settings(self.config, self.scorer.model),
            dist_init_required=False,
        )
        if self.engine.world_size != self.world.size:
            raise RuntimeError(f"DeepSpeed sees {self.engine.world_size} processes in place of {self.world.size}")
        if self.sharded and self.scorer.paths.split:
            head = self.scorer.model.get_output_embeddings()
            for parameter in head.parameters():  # its gradient is computed in the forward pass of the whole
                package.zero.register_external_parameter(self.engine.module, parameter)
        self.module = self._score

    def _score(self, *given: Any, **named: Any) -> TokenScores:
        return TokenScores(*self.engine(*given, **named))

    def _forget_moments(self) -> None:
        """Begin AdamW anew.

        DeepSpeed lets nobody at the moments before it has taken a step: so it takes one of no length, whose gradient
        is zero.
        """
        if not self._optimizer.state:
            for group in self._optimizer.param_groups:
                group["lr"] = 0.0
            with self.sums(last=True):
                self.backward(0 * self.module([[1]], [[1]]).logprobs.sum(), 0.0)
            if self.step(self._optimizer, math.inf, sound=True) is None:
                raise RunError("the model's log-probs are not finite before it is trained: look at its weights.")
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()


class _Tuples(torch.nn.Module):
    """The scorer with its scores as a tuple, in which DeepSpeed looks for what to call back on in the backward pass.

    It puts hooks on every module, which want tuples, too: so the scorer is not called as one.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, *given: Any, **named: Any) -> tuple[Tensor | None, ...]:
        scores = self.scorer.forward(*given, **named)
        return scores.logprobs, scores.entropy, scores.loss


def engine_settings(config: Config, model: PreTrainedModel) -> dict[str, Any]:
    """What DeepSpeed is told; batch sizes mean nothing to it here, since losses are sums."""
    stage: dict[str, Any] = {"stage": config.parallel.zero_stage, "reduce_bucket_size": BUCKET // ELEMENT}
    if config.parallel.splits_weights:
        width = model.config.get_text_config().hidden_size
        stage |= {
            "stage3_param_persistence_threshold": 10 * width,  # elements: the weights of norms stay whole
            "stage3_max_live_parameters": GATHERED // ELEMENT,
            "stage3_max_reuse_distance": GATHERED // ELEMENT,
        }
    if config.parallel.offload:
        host = {"device": "cpu", "pin_memory": model.device.type != "cpu"}
        stage["offload_optimizer"] = host
        if config.parallel.splits_weights:
            stage["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_gradient_norm,
        "zero_optimization": stage,
        "zero_force_ds_cpu_optimizer": False,  # its AdamW would be compiled; torch's works on the host as well
    }


def _load_deepspeed() -> Any:
    """The package; it compiles nothing, and says what it says on stderr: stdout is for results."""
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)  # of calls that newer versions rename
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    return deepspeed
