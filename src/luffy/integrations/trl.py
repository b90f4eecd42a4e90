"""LUFFY inside TRL's `GRPOTrainer`: expert traces as members of the groups, and this project's loss.

    trainer = LuffyTrainer(
        model=..., reward_funcs=..., train_dataset=...,  # with a column `traces` beside `prompt`
        args=GRPOConfig(loss_type="dr_grpo", scale_rewards="none", beta=0.0, ...),
    )

Everything else stays TRL's: data loading, generation, rewards and advantages, optimizer, logging, checkpoints. Three of
its methods are extended, which are private to it: `_generate_and_score_completions`, `_generate_single_turn` and
`_compute_loss`. Written for TRL 1.16.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luffy.algorithm import METHODS, Method, policy_loss, token_weights
from luffy.algorithm.loss import Normalization, kl_estimate
from luffy.data.prompts import encode_traces
from luffy.integrations import policy_loss_methods
from luffy.types import Trace

try:
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError(f"luffy.integrations.trl needs TRL: pip install 'luffy-rl[trl]' ({error})") from error

logger = logging.getLogger(__name__)

NORMALIZATIONS: dict[str, Normalization] = {"dr_grpo": "constant", "grpo": "sequence", "dapo": "token"}
REQUIRED: dict[str, Any] = {  # settings that change TRL's loss in ways that this one does not know
    "importance_sampling_level": "token",
    "delta": None,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
}


class LuffyTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer that learns from expert traces as LUFFY does.

    In training, the last members of a problem's group are its traces; they are verified by the same reward functions as
    the completions, and count in the group's mean. Their behaviour policy is taken as pi_phi = 1. A problem without
    trace has a group of completions alone. `scale_rewards="none"` is the paper's choice; TRL divides by default.
    """

    def __init__(
        self,
        *positional: Any,
        method: str = "luffy",
        gamma: float = 0.1,
        traces_per_group: int = 1,
        trace_column: str = "traces",
        **named: Any,
    ) -> None:
        """As `GRPOTrainer`, and: method: a name in `METHODS` whose traces, if any, join the group. gamma: of shaping.

        traces_per_group: at most so many traces a group; of more, some are drawn. trace_column: the column of
        `train_dataset` that holds a trace, or a list of them, each as the model would have written it after the prompt.
        Raises ValueError for a setting or a data set that this trainer cannot use.
        """
        super().__init__(*positional, **named)
        self.method, self.gamma = _method(method), gamma
        self.traces_per_group, self.trace_column = traces_per_group, trace_column
        _check_settings(self.args, self.method)
        _check_task(self, named)
        if not 0 < traces_per_group < self.num_generations:
            raise ValueError(
                f"traces_per_group is {traces_per_group}; it must be at least 1 and less than num_generations "
                f"({self.num_generations})"
            )
        self._traces: dict[int, list[int]] = {}  # row of the batch -> token ids of the trace that stands there
        self._placed = False
        self._said_too_long = False

    # -- what TRL calls

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.trace_column not in self._signature_columns:
            self._signature_columns.append(self.trace_column)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch [rows, ...] with the traces in it, and `off_policy` [rows] that says where."""
        self._traces = self._choose_places(inputs) if self.model.training else {}
        self._placed = False
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._traces and not self._placed:
            raise RuntimeError("this version of TRL generates in another way, so no trace was placed; use trl 1.16")
        off_policy = torch.zeros(len(inputs), dtype=torch.bool, device=batch["completion_ids"].device)
        off_policy[list(self._traces)] = True
        batch["off_policy"] = off_policy
        self._traces = {}
        return batch

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, *further: Any, **named: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Completions of the rows that are no trace, and the traces; log-probs, where TRL has them, NaN for traces."""
        rows = range(len(prompt_ids))
        own = [row for row in rows if row not in self._traces]
        if self.use_vllm or not own:  # vLLM draws whole groups, and nothing can generate for no prompts
            own = list(rows)
        drawn, logprobs = super()._generate_single_turn([prompt_ids[row] for row in own], images, *further, **named)
        completions = dict(zip(own, drawn, strict=True)) | self._traces
        self._placed = True
        if logprobs is None:
            return [completions[row] for row in rows], None
        # TRL takes NaN as a token that needs no correction for its engine
        known = dict(zip(own, logprobs, strict=True)) | {
            row: [float("nan")] * len(trace) for row, trace in self._traces.items()
        }
        return [completions[row] for row in rows], [known[row] for row in rows]

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The loss of a micro-batch as its share of the optimizer step's."""
        mask = inputs["completion_mask"]
        logprobs, entropy, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            mask.size(1),
            compute_entropy=True,
        )
        off_policy = _per_token(inputs["off_policy"], logprobs)
        old = inputs.get("old_per_token_logps")
        old = logprobs.detach() if old is None else old.to(logprobs)
        reference, importance = inputs.get("ref_per_token_logps"), inputs.get("importance_sampling_ratio")
        loss, sums = policy_loss(
            logprobs,
            torch.where(off_policy, 0.0, old),
            _per_token(inputs["advantages"], logprobs).to(logprobs),
            off_policy,
            mask,
            shaping=self.method.shaping,
            sampled_shaping=self.method.sampled_shaping,
            gamma=self.gamma,
            clip_range=self.args.epsilon if self.method.clip else None,
            normalization=NORMALIZATIONS[self.loss_type],
            max_length=self.max_completion_length,
            weights=self._token_weights(mask.to(logprobs.dtype), inputs),
            reference_logprobs=reference,
            kl_coefficient=self.beta,
            importance_weights=None if importance is None else importance.expand_as(logprobs),
        )
        sums["entropy"] = float((entropy.detach() * mask).sum())
        if reference is not None:
            sums["kl"] = float(torch.where(mask.bool(), kl_estimate(logprobs.detach(), reference), 0.0).sum())
        self._record(sums)
        return loss

    # -- its parts

    def _choose_places(self, inputs: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
        """The rows [of this process] that traces stand in: the last of each group, whose rows follow one another."""
        if self.method.traces == "none":
            return {}
        first = self.accelerator.process_index * len(inputs)
        places = {}
        for row, example in enumerate(inputs):
            from_end = self.num_generations - (first + row) % self.num_generations
            if from_end <= self.traces_per_group:
                traces = self._traces_of(example)
                if from_end <= len(traces):
                    places[row] = traces[-from_end]
        return places

    def _traces_of(self, example: Mapping[str, Any]) -> list[list[int]]:
        """The traces [at most `traces_per_group`] of a problem as token ids; on every process the same in a step."""
        texts = _texts(example.get(self.trace_column), self.trace_column)
        encoded = encode_traces([Trace(text) for text in texts], self._tokenizer) if texts else []
        short = [ids for ids in encoded if len(ids) <= self.max_completion_length]
        if len(short) < len(encoded) and not self._said_too_long:
            self._said_too_long = True
            logger.warning(
                "a trace of %d tokens is longer than max_completion_length (%d); such traces are left out",
                max(map(len, encoded)),
                self.max_completion_length,
            )
        if len(short) <= self.traces_per_group:
            return short
        generator = random.Random(f"{self.args.seed}/{self.state.global_step}/{example['prompt']}")
        return generator.sample(short, self.traces_per_group)

    def _token_weights(self, mask: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """1/Z of the micro-batch's tokens, so that the sum over an optimizer step's micro-batches is the whole loss."""
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        if self.loss_type != "dapo":
            normalization = NORMALIZATIONS[self.loss_type]
            return token_weights(mask, normalization=normalization, max_length=self.max_completion_length) / accumulated
        # TRL counts the tokens of all that it generates at once, over all processes, whose gradients are then averaged
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * accumulated / self.args.steps_per_generation
        weights: Tensor = mask / tokens
        return weights

    def _record(self, sums: Mapping[str, float]) -> None:
        """Add means over the tokens of all processes to TRL's metrics."""
        names = sorted(sums)
        local = torch.tensor([sums[name] for name in names], device=self.accelerator.device)
        totals = dict(zip(names, self.accelerator.reduce(local, reduction="sum").tolist(), strict=True))
        sampled, traces = totals["sampled_tokens"], totals["trace_tokens"]
        means: dict[str, tuple[float, float]] = {
            name: (totals[name], sampled + traces) for name in ("entropy", "kl") if name in totals
        }
        means["guidance/trace_probability"] = (totals["trace_probability"], traces)
        means["guidance/sampled_probability"] = (totals["sampled_probability"], sampled)
        means["clip_ratio/region_mean"] = (totals.get("clipped_tokens", 0.0), sampled if self.method.clip else 0)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, (total, tokens) in means.items():
            if tokens:
                metrics[name].append(total / tokens)


def _method(name: str) -> Method:
    known = policy_loss_methods()
    if name not in known:
        raise ValueError(f"method is {name!r}; LuffyTrainer knows: {', '.join(known)}")
    return METHODS[name]


def _check_settings(settings: GRPOConfig, method: Method) -> None:
    """Raise ValueError for a setting that `_compute_loss` would pass over."""
    if settings.loss_type not in NORMALIZATIONS:
        raise ValueError(f"loss_type is {settings.loss_type!r}; LuffyTrainer knows: {', '.join(NORMALIZATIONS)}")
    for name, value in REQUIRED.items():
        if getattr(settings, name, value) != value:
            raise ValueError(
                f"{name} is {getattr(settings, name)!r}; LuffyTrainer has no such term: set it to {value!r}"
            )
    if settings.beta and getattr(settings, "use_bias_correction_kl", False):
        raise ValueError("use_bias_correction_kl is True; LuffyTrainer's KL term is plain k3: set it to False")
    if method.clip and settings.epsilon_high not in (None, settings.epsilon):
        raise ValueError(
            f"epsilon is {settings.epsilon} and epsilon_high {settings.epsilon_high}; LuffyTrainer clips to both sides "
            "alike: leave epsilon_high out"
        )


def _check_task(trainer: Any, named: Mapping[str, Any]) -> None:
    """Raise ValueError for a task whose completions are more than a text after a text, or one without traces."""
    for name in ("tools", "environment_factory", "rollout_func"):
        if named.get(name):
            raise ValueError(f"LuffyTrainer generates by itself, without {name}: a trace is one text after one prompt")
    if getattr(trainer, "aux_loss_enabled", False):
        raise ValueError("LuffyTrainer has no router loss: set router_aux_loss_coef to 0")
    columns = getattr(trainer.train_dataset, "column_names", None) or []
    for name in ("image", "images"):
        if name in columns:
            raise ValueError(f"train_dataset has the column {name!r}; LuffyTrainer is for text alone")
    if columns and trainer.method.traces != "none" and trainer.trace_column not in columns:
        raise ValueError(
            f"train_dataset has no column {trainer.trace_column!r} with traces; it has: {', '.join(columns)}. Name "
            "another with trace_column, or use method='on_policy'"
        )


def _texts(value: Any, column: str) -> list[str]:
    """The traces of a problem; none for None and for blank texts. Raises ValueError for what is no text."""
    values = value if isinstance(value, list | tuple) else [value]
    for one in values:
        if one is not None and not isinstance(one, str):
            raise ValueError(f"column {column!r} holds {type(one).__name__}; a trace is a text, or a list of texts")
    return [one for one in values if one and one.strip()]


def _per_token(values: Tensor, like: Tensor) -> Tensor:
    """[rows] as [rows, tokens]."""
    return values[:, None].expand_as(like)
