"""A decode step of a model of Llama's shape in as few calls as it takes, on a CPU.

With the few rows of a decode step, the library's forward pass spends between its products as much time as in them
(docs/performance.md). Decisions, and why:
- Projections that read the same rows are one product: queries, keys and values; gate and up. The joined weights are
  copies as of the beginning of a generation, in oneDNN's order where they are large (packed_linear.py).
- Queries and keys are turned together, by angles looked up in a table.
- A row is one token, so tensors have no axis for tokens.
- It takes architectures that are known by name and nothing that changes their modules (adapters, hooks, quantised
  weights). Others are decoded by their own forward pass, and so is a model whose trial differs (decoding.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from luffy.rollout.packed_linear import joined

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luffy.rollout.cache import RolloutCache

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
FIXED_ANGLES = ("default", "linear", "llama3", "yarn")  # rotary positions that depend on nothing but the position
TABLE = 512  # positions by which the table of angles grows

Product = Callable[[Tensor], Tensor]  # [rows, inputs] to [rows, outputs]


class LeanForward:
    """Logits after one more token a row; with the weights as they were when it was made."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises NotImplementedError for a model that it does not take."""
        if reason := _refusal(model):
            raise NotImplementedError(reason)
        body: Any = model.model
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._layers = [_Layer(layer, index) for index, layer in enumerate(body.layers)]
        self._norm, self._head = _norm(body.norm), joined([model.lm_head])
        self._rotary = body.rotary_emb
        self._angles = self._embedding.new_empty(0)  # [positions, 2, 1, width]: cosines, and sines with their sign

    def __call__(self, tokens: Tensor, positions: Tensor, cache: RolloutCache) -> Tensor:
        """Logits [rows, vocabulary]; tokens, positions: [rows]."""
        if cache.reach >= len(self._angles):
            self._angles = self._table(cache.reach + TABLE)
        cosine, sine = self._angles[positions].unbind(1)
        states = functional.embedding(tokens, self._embedding)
        for layer in self._layers:
            states = layer(states, cosine, sine, cache)
        return self._head(self._norm(states))

    def _table(self, positions: int) -> Tensor:
        """Cosines, and sines with the sign by which `_Layer._turned` multiplies the other half."""
        cosine, sine = self._rotary(self._embedding, torch.arange(positions, device=self._embedding.device)[None])
        first, second = sine[0].chunk(2, dim=-1)
        return torch.stack([cosine[0], torch.cat([-first, second], dim=-1)], dim=1)[:, :, None]


class _Layer:
    def __init__(self, layer: Any, index: int) -> None:
        attention, self.index = layer.self_attn, index
        self.width: int = attention.head_dim
        self.heads: int = attention.q_proj.out_features // self.width
        self.turned_heads: int = self.heads + attention.k_proj.out_features // self.width  # queries and keys
        self.project = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.mix = joined([attention.o_proj])
        self.expand = joined([layer.mlp.gate_proj, layer.mlp.up_proj])
        self.contract, self.activate = joined([layer.mlp.down_proj]), layer.mlp.act_fn
        self.before_attention, self.before_mlp = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.query_norm, self.key_norm = (
            _norm(getattr(attention, name)) if hasattr(attention, name) else None for name in ("q_norm", "k_norm")
        )

    def __call__(self, states: Tensor, cosine: Tensor, sine: Tensor, cache: RolloutCache) -> Tensor:
        """states: [rows, hidden]. cosine, sine: [rows, 1, width]."""
        rows = len(states)
        projected = self.project(self.before_attention(states)).view(rows, -1, self.width)
        turned = self._turned(self._normed(projected[:, : self.turned_heads]), cosine, sine)[:, :, None]
        query, key = turned[:, : self.heads], turned[:, self.heads :]
        key, value = cache.update(key, projected[:, self.turned_heads :, None], self.index)
        attended = cache.attend(query, key, value, scaling=None, sliding_window=None)
        states = states + self.mix(attended.reshape(rows, -1))
        gate, up = self.expand(self.before_mlp(states)).chunk(2, dim=-1)
        return states + self.contract(self.activate(gate) * up)

    def _normed(self, heads: Tensor) -> Tensor:
        """Queries and keys, [rows, heads, width], where the architecture norms them."""
        if self.query_norm is None or self.key_norm is None:
            return heads
        query, key = heads[:, : self.heads], heads[:, self.heads :]
        return torch.cat([self.query_norm(query), self.key_norm(key)], dim=1)

    def _turned(self, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        return torch.addcmul(heads * cosine, heads.roll(self.width // 2, dims=-1), sine)


def _norm(module: Any) -> Product:
    """The library norms float64 in float32, and so its own module does that."""
    weight = module.weight.detach()
    if weight.dtype == torch.float64:
        return lambda states: module(states)
    return partial(functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=module.variance_epsilon)


def _refusal(model: PreTrainedModel) -> str:
    """Why a model is not taken; empty: it is."""
    config = model.config
    if config.model_type not in ARCHITECTURES:
        return f"{config.model_type} is not among {', '.join(ARCHITECTURES)}"
    if (config.rope_parameters or {}).get("rope_type", "default") not in FIXED_ANGLES:
        return "its rotary positions depend on the length"
    if model.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return "it is not on a CPU, or under autocast"
    return next((f"{name} is not as the library made it" for name, part in model.named_modules() if _is_odd(part)), "")


def _is_odd(module: Any) -> bool:
    """Whether a module's forward pass may be another than that of its architecture."""
    hooked = bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)
    known = type(module).__module__.startswith(
        ("torch.nn.modules.", "transformers.models.", "transformers.activations")
    )
    return hooked or not known or type(module) is nn.RMSNorm
