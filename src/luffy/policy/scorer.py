"""Scores the completions of many rows in one forward pass, by the fastest path that the model allows."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luffy.policy.attention import no_mask, plan_attention
from luffy.policy.batching import MicroBatch, pad_rows, split_packed, split_padded
from luffy.policy.logprobs import Loss, TokenScores, output_head, score_hidden_states
from luffy.policy.packing import pack_rows
from luffy.policy.precision import Autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class Scorer(torch.nn.Module):
    """Scores completions under a model: one forward pass, the head applied to completion tokens only.

    A module, so that the wrappers of multi-process training see one forward pass.

    Rows are packed into one line (`pack_rows`), and the model's body and head are used apart. Some architectures do
    more than their configuration says, or mix tokens by other means than attention; so the first use compares both
    with the model's own logits and, where they differ, takes the plain path from then on: padded rows, or whole logits.
    That is said once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pad_id: int,
        chunk_elements: int,
        autocast: Autocast = "none",
        packed: bool = True,
    ) -> None:
        """chunk_elements: logits (tokens x vocabulary) at once. autocast: `bfloat16` for matrix products in it.

        packed: False pads rows instead of packing them, for comparison.
        """
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.chunk_tokens = max(1, chunk_elements // _vocabulary(model))
        self.autocast = autocast
        self._paths: Paths | None = None
        self._may_pack = packed

    def forward(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        loss: Loss | None = None,
    ) -> TokenScores:
        """Score every completion token given its prompt and the completion before it.

        prompts, completions: token ids, [rows] of uneven length. temperature: of the policy that is scored.
        loss: see `score_hidden_states`. Returns scores [sum of completion lengths], row by row.
        """
        with self._precision():
            hidden, targets = self._states(prompts, completions)
            head = output_head(self.model) if self.paths.split else _identity
            return score_hidden_states(
                hidden,
                targets,
                head,
                temperature=temperature,
                chunk_tokens=self.chunk_tokens,
                entropy_gradient=entropy_gradient,
                loss=loss,
                head_parameters=_trainable(self.model.get_output_embeddings()) if self.paths.split else (),
            )

    def micro_batches(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], token_budget: int
    ) -> list[MicroBatch]:
        """Cut rows into micro-batches that are scored with at most `token_budget` tokens each, padding counted."""
        if self.paths.packed:
            return split_packed(prompts, completions, token_budget)
        return split_padded([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], token_budget)

    @property
    def paths(self) -> Paths:
        """What the model is found to allow, by a trial at the first use."""
        if self._paths is None:
            training = self.model.training
            self.model.eval()  # an adapter's dropout would make any two passes differ
            try:
                with self._precision():
                    self._paths = self._try_paths()
            finally:
                self.model.train(training)
        return self._paths

    def _precision(self) -> AbstractContextManager[None]:
        device = self.model.device.type
        return torch.autocast(device, torch.bfloat16) if self.autocast == "bfloat16" else nullcontext()

    def _states(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Last hidden states that predict the completions' tokens, [tokens, width], and those tokens [tokens].

        Where body and head cannot be used apart, logits [tokens, vocabulary] stand for the states.
        """
        device = self.model.device
        if self.paths.packed:
            packed = pack_rows(prompts, completions, device)
            states = self._run(
                self.paths.split,
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                attention_mask=no_mask(device),
                attention_plan=packed.attention,
            )
            return states[0].index_select(0, packed.predictors), packed.targets
        rows = pad_rows(prompts, completions, self.pad_id, device)
        states = self._run(self.paths.split, input_ids=rows.input_ids, attention_mask=rows.attention_mask)
        return states[:, :-1][rows.completion_mask], rows.input_ids[:, 1:][rows.completion_mask]

    def _run(self, split: bool, **given: Any) -> Tensor:
        """Hidden states [rows, length, width] if split, else logits [rows, length, vocabulary]."""
        if split:
            states: Tensor = self.model.get_decoder()(**given, use_cache=False).last_hidden_state
            return states
        logits: Tensor = self.model(**given, use_cache=False).logits
        return logits

    @torch.no_grad()
    def _try_paths(self) -> Paths:
        """Compare the fast paths with the model's own logits on short rows of which two share a prompt."""
        name, device = type(self.model).__name__, self.model.device
        prompts, completions = _trial_rows(_vocabulary(self.model))
        rows = pad_rows(prompts, completions, self.pad_id, device)
        given = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
        expected = self._run(False, **given)[:, :-1][rows.completion_mask].float()

        rounded = self.autocast == "bfloat16" or self.model.dtype == torch.bfloat16
        tolerance = 1e-1 if rounded else 1e-2  # of the largest logit; a path that a model does not allow is further off

        def agrees(logits: Tensor) -> bool:
            return bool((logits.float() - expected).abs().max() <= tolerance * expected.abs().max())

        def split() -> bool:
            return agrees(output_head(self.model)(self._run(True, **given)[:, :-1][rows.completion_mask]))

        def packed() -> bool:
            if not plan_attention(self.model):
                return False
            packed = pack_rows(prompts, completions, device)
            logits = self._run(
                False,
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                attention_mask=no_mask(device),
                attention_plan=packed.attention,
            )
            return agrees(logits[0, packed.predictors]) and packed.attention.windows >= _windows(self.model)

        paths = Paths(split=_holds(split), packed=self._may_pack and _holds(packed))
        if not paths.split:
            logger.warning("%s: logits are computed whole, which needs more memory.", name)
        if self._may_pack and not paths.packed:
            logger.warning("%s: rows are padded instead of packed, which takes more time.", name)
        return paths


@dataclass(frozen=True, slots=True)
class Paths:
    """Which fast paths give what the model's own forward pass gives."""

    split: bool  # body and head apart, so that logits need not be computed whole
    packed: bool  # rows in one line under an attention plan, so that nothing is padded


def _holds(trial: Callable[[], bool]) -> bool:
    """The trial's result; an architecture on which it cannot even be made does not pass it."""
    try:
        return trial()
    except (AttributeError, TypeError, RuntimeError, ValueError, NotImplementedError) as error:
        logger.debug("a fast path cannot be taken: %s", error)
        return False


def _trial_rows(vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    """Two rows that share a prompt longer than they are, and a third."""
    generator = random.Random(0)
    draw = [[generator.randrange(vocabulary) for _ in range(length)] for length in (12, 5, 7, 4, 9)]
    return [draw[0], draw[0], draw[3]], [draw[1], draw[2], draw[4]]


def _windows(model: PreTrainedModel) -> set[int]:
    """The lengths of the sliding windows that the configuration speaks of; a layer that has one must say so."""
    config: Any = model.config.get_text_config()
    chunk = getattr(config, "attention_chunk_size", None)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else bool(getattr(config, "use_sliding_window", True))
    return ({int(window)} if window and slides else set()) | ({-int(chunk)} if chunk else set())


def _trainable(module: torch.nn.Module | None) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad] if module else []


def _identity(logits: Tensor) -> Tensor:
    return logits


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)
