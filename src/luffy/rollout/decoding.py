"""From prompts and drawn tokens to the next logits: three ways that give the same numbers.

`LeanDecoder` is the fastest and takes some architectures on a CPU, `SharedPromptDecoder` takes models whose layers are
plain attention, and `PlainDecoder` any model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from luffy.errors import first_line
from luffy.policy.attention import no_mask, plan_attention
from luffy.rollout.cache import RolloutCache, takes
from luffy.rollout.lean import LeanForward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Rows in the middle of their completions."""

    joins: bool  # whether prompts may be added while others are decoded

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        """pad_id: the token that fills up shorter prompts."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]], n: int) -> Tensor:
        """Add n rows for each prompt behind those that are there. Returns their logits [prompts * n, vocabulary]."""
        ...

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [rows, vocabulary] after one more token a row; tokens, positions: [rows]."""
        ...

    def keep(self, stay: Tensor) -> None:
        """Drop rows; stay: [rows], whether a row stays."""
        ...


class SharedPromptDecoder:
    """Keeps a prompt once for all its rollouts and copies nothing between steps; see `RolloutCache`."""

    joins = True

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self._cache = RolloutCache()
        self._mask = no_mask(model.device)

    def prefill(self, prompts: Sequence[Sequence[int]], n: int) -> Tensor:
        """See `Decoder.prefill`. Raises NotImplementedError for a model with another kind of cache."""
        output, mask = prefill(self.model, prompts, self.pad_id)
        if not takes(self.model.config.get_text_config(), output.past_key_values):
            raise NotImplementedError(f"its cache ({type(output.past_key_values).__name__}) is more than attention")
        self._cache.add(output.past_key_values, mask, n)
        return _last_logits(output).repeat_interleave(n, dim=0)

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `Decoder.decode`."""
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=positions[:, None],
            past_key_values=self._cache,
            attention_plan=self._cache,
            use_cache=True,
        )
        return _last_logits(output)

    def keep(self, stay: Tensor) -> None:
        """See `Decoder.keep`."""
        self._cache.keep(stay)


class LeanDecoder(SharedPromptDecoder):
    """Decodes in fewer calls than the model's own forward pass, with the weights of the moment; see `LeanForward`."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        """Raises NotImplementedError for a model that `LeanForward` does not take."""
        super().__init__(model, pad_id)
        self._forward = LeanForward(model)

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `Decoder.decode`."""
        return self._forward(tokens, positions, self._cache)


class PlainDecoder:
    """The model's own cache and attention, with a mask where prompts are of different lengths."""

    joins = False

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self._cache: Any = None
        self._mask = torch.empty(0)  # [rows, tokens], 0 where padded
        self._padded = False

    def prefill(self, prompts: Sequence[Sequence[int]], n: int) -> Tensor:
        """See `Decoder.prefill`; there must be no rows left."""
        output, mask = prefill(self.model, prompts, self.pad_id)
        rows = torch.arange(len(mask), device=mask.device).repeat_interleave(n)
        self._cache, self._mask, self._padded = output.past_key_values, mask[rows], not bool(mask.all())
        self._cache.reorder_cache(rows)
        return _last_logits(output)[rows]

    def decode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `Decoder.decode`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self._mask if self._padded else None,
            position_ids=positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        return _last_logits(output)

    def keep(self, stay: Tensor) -> None:
        """See `Decoder.keep`."""
        rows = torch.nonzero(stay).squeeze(-1)
        self._mask = self._mask[rows]
        self._cache.reorder_cache(rows)


def pick_decoder(model: PreTrainedModel, prompt: Sequence[int], pad_id: int) -> type[Decoder]:
    """The fastest decoder that takes the model and says the same as the plain one; the latter is logged."""
    prompts = [prompt[:64], prompt[: (len(prompt[:64]) + 1) // 2]]
    reason = f"its attention is {model.config._attn_implementation}, not the replaceable sdpa"
    fast: tuple[type[Decoder], ...] = (LeanDecoder, SharedPromptDecoder) if plan_attention(model) else ()
    for decoder in fast:
        reason = _disagreement(decoder, model, prompts, pad_id)
        if not reason:
            return decoder
        logger.debug("%s does not decode %s: %s.", decoder.__name__, type(model).__name__, reason)
    logger.warning("%s is decoded by the plain path, which is slower: %s.", type(model).__name__, reason)
    return PlainDecoder


def _disagreement(decoder: type[Decoder], model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int) -> str:
    """Why a fast decoder cannot be used, found by trying it and the plain one on two short prompts; empty: it can."""
    try:
        fast, plain = (_try(one(model, pad_id), prompts) for one in (decoder, PlainDecoder))
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        return first_line(error)
    tolerance = 5e-2 if model.dtype in (torch.float16, torch.bfloat16) else 1e-3
    difference, scale = float((fast - plain).abs().max()), float(plain.abs().max())
    return "" if difference <= tolerance * scale else f"its logits would differ by {difference:.1g}"


def _try(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits of two rollouts of each prompt over two tokens, between which one row leaves. [rows, vocabulary]."""
    logits = decoder.prefill(prompts, 2)
    tokens = torch.tensor([prompt[0] for prompt in prompts for _ in range(2)], device=logits.device)
    positions = torch.tensor([len(prompt) for prompt in prompts for _ in range(2)], device=logits.device)
    first = decoder.decode(tokens, positions)
    stay = torch.arange(len(tokens), device=logits.device) != 0
    decoder.keep(stay)
    return torch.cat([logits, first, decoder.decode(tokens[stay], positions[stay] + 1)]).float()


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Any, Tensor]:
    """The model's output for prompts padded on the left, and their mask [prompts, longest]."""
    input_ids, mask = _pad_left(prompts, pad_id, model.device)
    padded = not bool(mask.all())
    output = model(
        input_ids=input_ids,
        attention_mask=mask if padded else None,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0) if padded else None,
        use_cache=True,
        logits_to_keep=1,
    )
    return output, mask


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts [prompts, longest] padded on the left, and their mask."""
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return input_ids.to(device), mask.to(device)


def _last_logits(output: Any) -> Tensor:
    logits: Tensor = output.logits[:, -1]
    return logits
