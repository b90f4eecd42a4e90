"""The keys and values of rollouts, stored so that decoding reads little and copies nothing.

Decisions, and why:
- A prompt's keys and values are stored once for all its rollouts. The queries of all of them are multiplied with it at
  once; a row's own tokens lie beside it, and one softmax goes over both. Short prompts are not worth these two halves:
  each row gets a copy, as the first of its own tokens.
- Grouped queries are multiplied with their key head as it is; no key is repeated.
- Own tokens are written in place into buffers that grow by blocks. They start at the same column for all rows of a
  wave, so they need no mask; a sliding window is a slice.
- Prompts that were prefilled together are a wave. A forward pass takes the rows of all waves; attention alone goes wave
  by wave. So new prompts can join rows that are in the middle of their completions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BLOCK = 64  # tokens by which the buffers grow
SHORT = 4096  # tokens of all rows: up to here, prompts are copied to their rows


class RolloutCache(Cache):  # type: ignore[misc]  # of a library without types
    """A cache for forward passes of one token a row, and the attention plan that reads it (policy/attention.py)."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.waves: list[Wave] = []
        self._current: tuple[Tensor, Tensor, int] | None = None  # what the layer in work was handed, and its index

    def add(self, prefilled: DynamicCache, mask: Tensor, n: int) -> None:
        """Append n rows for each of the prompts that `prefilled` holds; mask: [prompts, longest], 0 where padded."""
        self.waves.append(Wave(prefilled, mask, n))

    def keep(self, stay: Tensor) -> None:
        """Drop rows; stay: [rows], whether a row stays."""
        parts = zip(self.waves, stay.split([wave.rows for wave in self.waves]), strict=True)
        self.waves = [wave for wave, part in parts if wave.keep(part)]

    @property
    def reach(self) -> int:
        """The position of the next token of the longest row."""
        return max((wave.longest + wave.layers[0].appended for wave in self.waves), default=0)

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """The length of the longest row, for models that ask; the positions are given to them."""
        return max((wave.longest for wave in self.waves), default=0)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: object, **_named: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new token's keys and values, [rows, key heads, 1, width]; `attend` finds them again."""
        first = 0
        for wave in self.waves:
            last = first + wave.rows
            wave.layers[layer_idx].append(key_states[first:last], value_states[first:last])
            first = last
        self._current = key_states, value_states, layer_idx
        return key_states, value_states

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, sliding_window: int | None
    ) -> Tensor:
        """Attention of one layer; see `AttentionPlan.attend`. Raises NotImplementedError where keys are not its own."""
        if self._current is None or self._current[0] is not key or self._current[1] is not value:
            raise NotImplementedError("a layer attends to other keys than those that it has just stored")
        layer, scale = self._current[2], scaling if scaling is not None else query.shape[-1] ** -0.5
        if len(self.waves) == 1:
            return self.waves[0].attend(layer, query, scale, sliding_window)
        parts = zip(self.waves, query.split([wave.rows for wave in self.waves]), strict=True)
        return torch.cat([wave.attend(layer, part, scale, sliding_window) for wave, part in parts])


class Wave:
    """Rows of prompts that were prefilled together.

    Queries meet shared prompts' keys in slots: [prompts, places], a place for each rollout of a prompt. While all
    rollouts of all prompts are there, rows are slots; afterwards some slots stay empty.
    """

    def __init__(self, prefilled: DynamicCache, mask: Tensor, n: int) -> None:
        """See `RolloutCache.add`."""
        self.longest = mask.shape[1]
        self._shared = self.longest * len(mask) * n > SHORT  # whether a prompt's rows share its keys
        self.layers = [LayerStore(layer, n, shared=self._shared) for layer in prefilled.layers]
        precision = self.layers[0].prompt_keys.dtype
        padding = torch.zeros(mask.shape, dtype=_score_dtype(precision), device=mask.device)
        padding = padding.masked_fill(mask == 0, -torch.inf)[:, None]
        padding = padding if self._shared else padding.to(precision).repeat_interleave(n, dim=0)
        self._padding = None if bool(mask.all()) else padding  # [prompts or rows, 1, tokens]
        self._prompt = torch.arange(len(mask), device=mask.device).repeat_interleave(n)  # [rows], of each row
        self._prompts, self._places = mask.shape[0], n
        self._slot: Tensor | None = None  # [rows], of each row; None: rows are slots

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(self._prompt)

    def keep(self, stay: Tensor) -> bool:
        """Drop rows, and prompts without rows; stay: [rows]. Whether rows are left."""
        kept = torch.nonzero(stay).squeeze(-1)
        if 0 < len(kept) < self.rows:
            self._prompt = self._prompt[kept]
            prompts = self._without_empty_prompts() if self._shared else None
            for layer in self.layers:
                layer.keep(kept, prompts)
            left = prompts if self._shared else kept
            if self._padding is not None and left is not None:
                self._padding = self._padding[left]
        return len(kept) > 0

    def _without_empty_prompts(self) -> Tensor | None:
        """Give the rows new slots, none for prompts without rows. The prompts that are left; None: all."""
        before = self._prompts
        prompts, self._prompt, counts = torch.unique_consecutive(self._prompt, return_inverse=True, return_counts=True)
        self._places = int(counts.max())
        starts = counts.cumsum(0) - counts
        place = torch.arange(self.rows, device=starts.device) - starts[self._prompt]
        self._slot = self._prompt * self._places + place
        self._prompts = len(prompts)
        if self.rows == self._prompts * self._places:
            self._slot = None
        return prompts if self._prompts < before else None

    def attend(self, layer: int, query: Tensor, scale: float, sliding_window: int | None) -> Tensor:
        """Attention of each row's newest token. query: [rows, heads, 1, width]. Returns [rows, 1, heads, width]."""
        store = self.layers[layer]
        if sliding_window is not None and sliding_window != store.window:
            raise NotImplementedError("a layer attends within a window that its configuration does not name")
        visible = store.visible_of_prompt()
        grouped = query.reshape(len(query), store.key_heads, -1, query.shape[-1])  # the queries of each key head
        if visible == 0:
            output = self._attend_to_own(store, grouped, scale)
        else:
            output = self._attend_to_both(store, grouped * scale, visible)
        return output.reshape(len(query), 1, query.shape[1], -1)

    def _attend_to_own(self, store: LayerStore, grouped: Tensor, scale: float) -> Tensor:
        """Attention to what each row stores for itself; where prompts are short, they are among it."""
        keys, values = store.own()
        return scaled_dot_product_attention(grouped, keys, values, self._mask(store, keys.shape[2]), scale=scale)

    def _mask(self, store: LayerStore, tokens: int) -> Tensor | None:
        """Of a row's newest tokens, -inf where they are padding: [rows, 1, 1, tokens]; None: none of them is."""
        last = self.longest + store.appended
        if self._padding is None or self._shared or last - tokens >= self.longest:
            return None
        if last > self._padding.shape[-1]:
            self._padding = pad(self._padding, (0, last + BLOCK - self._padding.shape[-1]))
        return self._padding[:, None, :, last - tokens : last]

    def _attend_to_both(self, store: LayerStore, grouped: Tensor, visible: int) -> Tensor:
        """Attention to the last tokens of a shared prompt, and to each row's own."""
        keys, values = store.own()
        prompt_keys, prompt_values = store.prompt_keys[:, :, -visible:], store.prompt_values[:, :, -visible:]
        prompt_scores = _products(self._to_slots(grouped), prompt_keys)
        if self._padding is not None:
            prompt_scores = prompt_scores + self._padding[:, None, :, -visible:]
        scores = torch.cat([self._to_rows(prompt_scores), _products(grouped, keys)], dim=-1)
        weights = torch.softmax(scores, dim=-1).to(values.dtype)
        output = self._to_rows(self._to_slots(weights[..., :visible]) @ prompt_values)
        return output + weights[..., visible:] @ values

    def _to_slots(self, of_rows: Tensor) -> Tensor:
        """[rows, key heads, queries, width] to [prompts, key heads, places x queries, width]; empty slots hold 0."""
        if self._slot is None:
            slots = of_rows
        else:
            slots = of_rows.new_zeros(self._prompts * self._places, *of_rows.shape[1:])
            slots[self._slot] = of_rows
        _, heads, _, width = slots.shape
        return slots.reshape(self._prompts, self._places, heads, -1, width).transpose(1, 2).flatten(2, 3)

    def _to_rows(self, of_slots: Tensor) -> Tensor:
        """The inverse of `_to_slots`."""
        _, heads, _, width = of_slots.shape
        slots = of_slots.reshape(self._prompts, heads, self._places, -1, width).transpose(1, 2).flatten(0, 1)
        return slots if self._slot is None else slots[self._slot]


class LayerStore:
    """Keys and values of one layer of a wave: of the prompts, and of the rows' own tokens."""

    def __init__(self, prefilled: DynamicLayer, n: int, *, shared: bool) -> None:
        """prefilled: of the prompts, each of which has n rows. shared: whether the rows share them, or have copies."""
        keys, values = prefilled.keys, prefilled.values
        assert keys is not None
        assert values is not None
        self.window: int | None = getattr(prefilled, "sliding_window", None)
        self.prompt_keys, self.prompt_values = keys, values  # [prompts, key heads, tokens, width], padded on the left
        own = 0 if shared else keys.shape[2]  # the first columns of each row's own tokens
        self._keys, self._values = (one[:, :, :own].repeat_interleave(n, dim=0) for one in (keys, values))
        if not shared:
            self.prompt_keys, self.prompt_values = keys[:, :, :0], values[:, :, :0]
        self._begin, self._end = 0, own  # the columns of own tokens that are in reach
        self.appended = 0  # tokens after the prompt, those that a window has left behind included

    @property
    def key_heads(self) -> int:
        """How many heads keys have."""
        return int(self._keys.shape[1])

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store one token a row: [rows, key heads, 1, width]."""
        if self._end == self._keys.shape[2]:
            self._keys, self._values = self._with_room(self._keys), self._with_room(self._values)
            self._begin, self._end = 0, self._end - self._begin
        self._keys[:, :, self._end] = keys[:, :, 0]
        self._values[:, :, self._end] = values[:, :, 0]
        self._end += 1
        self.appended += 1
        if self.window is not None:
            self._begin = max(self._begin, self._end - self.window)

    def own(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the own tokens that the newest one attends to, itself included."""
        return self._keys[:, :, self._begin : self._end], self._values[:, :, self._begin : self._end]

    def visible_of_prompt(self) -> int:
        """How many of the prompt's last tokens the newest token attends to."""
        stored: int = self.prompt_keys.shape[2]
        return stored if self.window is None else min(stored, max(0, self.window - self.appended))

    def keep(self, rows: Tensor, prompts: Tensor | None) -> None:
        """Keep the rows of these indices, and of the prompts those of these; None: all."""
        self._keys, self._values = self._keys.index_select(0, rows), self._values.index_select(0, rows)
        if prompts is not None:
            self.prompt_keys = self.prompt_keys.index_select(0, prompts)
            self.prompt_values = self.prompt_values.index_select(0, prompts)

    def _with_room(self, buffer: Tensor) -> Tensor:
        """The columns in reach, and behind them a block of free ones."""
        rows, heads, _, width = buffer.shape
        used = self._end - self._begin
        larger = buffer.new_empty(rows, heads, used + BLOCK, width)
        larger[:, :, :used] = buffer[:, :, self._begin : self._end]
        return larger


def takes(config: PreTrainedConfig, prefilled: Cache) -> bool:
    """Whether this kind of cache can go on where the model's own left off: attention alone, whole or in windows."""
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in prefilled.layers)
    return type(prefilled) is DynamicCache and plain and not chunked


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """Query times key, in float32 at least: [..., queries, width], [..., tokens, width] to [..., queries, tokens]."""
    if query.dtype not in (torch.float16, torch.bfloat16):
        return query @ keys.mT
    if query.device.type == "cuda":
        flat = torch.bmm(query.flatten(0, -3), keys.flatten(0, -3).mT, out_dtype=torch.float32)
        return flat.view(*query.shape[:-1], -1)
    return query.float() @ keys.float().mT


def _score_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
