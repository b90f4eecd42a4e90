"""What the benchmarks train on: random models of known shapes, problems with traces, completions of fixed lengths.

Whoever generates, a completion must have the length that the measurement asks for, or two trainers would do different
work. `Lengths` sees to it from inside the model, the same way for every engine: it watches the tokens that enter the
model's body and changes the logits that leave its head. The first token of a completion is drawn freely (ending is
forbidden); from the second on each row is told to repeat a mark, a token that stands for its length, until the
end-of-sequence token is due. So a row is recognised by what it holds, in whatever order or company it is decoded, and
stops for the engine's own reason: it drew an end. All that an engine does (prefill, cache, decode, sampling,
stopping, dropping rows) is done for real on both sides. While a gradient is recorded nothing is changed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luffy import Problem, Trace
from luffy.rollout.decoding import Decoder, LeanDecoder, PlainDecoder, SharedPromptDecoder

PAD, END, FIRST_WORD = 0, 1, 2  # token ids; every further id is a word, `w2`, `w3`, ...
CERTAIN = 1e4  # added to a logit, it makes a token certain in every dtype


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's shape; weights are random."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    context: int = 8192

    @property
    def parameters(self) -> int:
        """How many, the tied embedding once."""
        return sum(parameter.numel() for parameter in build_model(self, device="meta").parameters())


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 32, 64, 2, 4, 2, 64),  # for tests
        Shape("miniature", 128, 384, 3, 4, 4, 24),  # the built-in miniature, 0.64M
        Shape("small", 320, 960, 5, 5, 5, 1024),  # 6.5M
        Shape("135M", 576, 1536, 30, 9, 3, 49152),  # SmolLM2-135M
        Shape("0.5B", 896, 4864, 24, 14, 2, 151936),  # Qwen2-0.5B, without the biases of its projections
        Shape("1.5B", 1536, 8960, 28, 12, 2, 151936),  # Qwen2-1.5B, likewise
        Shape("5M", 256, 768, 5, 4, 4, 4096),
        Shape("27M", 448, 1216, 8, 7, 1, 24576),
        Shape("60M", 512, 1536, 12, 8, 2, 49152),
        Shape("85M", 768, 2048, 10, 12, 4, 32768),
    )
}


def build_model(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A causal language model with random weights and tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype)


def norm_in_its_own_precision(model: Any) -> Any:
    """Norms in the model's precision: the library's round to float32, which hides what a comparison looks for."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                exact = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=child.weight.dtype)
                exact.weight = child.weight
                setattr(module, name, exact)
    return model


def save_model(shape: Shape, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Leave the model and a tokenizer of one token a word, separated by spaces, as a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    build_model(shape, dtype).save_pretrained(folder)
    words = {"<pad>": PAD, "</s>": END} | {f"w{index}": index for index in range(FIRST_WORD, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words by spaces
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Work:
    """What a step does, for whichever trainer."""

    shape: str  # a name in SHAPES
    groups: int  # problems a step
    lengths: Sequence[int]  # of a group's sampled completions, their end included
    trace: int = 0  # tokens of the trace, its end included; 0: no trace
    prompt: int = 20  # tokens
    token_budget: int = 16384  # tokens in a micro-batch of ours
    rows: int = 8  # rows in a micro-batch of TRL
    dtype: str = "float32"
    autocast: str = "none"  # type of the products of an update, on both sides; ours generates with it, too
    device: str = "cpu"
    gradient_checkpointing: bool = False
    adapter_rank: int | None = None  # None: all weights are trained
    quantize: str | None = None  # how the base under the adapter is held
    trl: dict[str, Any] = field(default_factory=dict)  # further settings of GRPOConfig

    @property
    def group_size(self) -> int:
        """Members of a group, the trace included."""
        return len(self.lengths) + (self.trace > 0)

    @property
    def longest(self) -> int:
        """Tokens of the longest completion."""
        return max(*self.lengths, self.trace)

    @property
    def trained_tokens(self) -> int:
        """Tokens of all rows of a step, prompts and completions."""
        return self.groups * (sum(self.lengths) + self.trace + self.group_size * self.prompt)

    def recipe(self, folder: Path) -> dict[str, Any]:
        """How we are asked to do it, as overrides; the model lies in the folder, and the run will."""
        return {
            "model": str(folder),
            "output": str(folder / "run"),
            "method": "luffy" if self.trace else "on_policy",
            "problems_per_step": self.groups,
            "rollouts_every": 0,
            "rollout.group_size": self.group_size,
            "rollout.max_tokens": self.longest,
            "data.template": "none",
            "policy.token_budget": self.token_budget,
            "policy.dtype": self.dtype,
            "policy.autocast": self.autocast,
            "policy.device": self.device,
            "policy.gradient_checkpointing": self.gradient_checkpointing,
            "adapter.rank": self.adapter_rank,
            "adapter.quantize": self.quantize,
            "optimizer.learning_rate": 1e-6,
        }

    def to_json(self) -> str:
        """To hand it to another process."""
        return json.dumps(asdict(self))


def draw_problems(work: Work, count: int = 64) -> list[Problem]:
    """Problems whose traces earn a reward; words are drawn from the whole vocabulary."""
    generator = random.Random(0)
    last = SHAPES[work.shape].vocabulary - 1

    def words(tokens: int) -> str:
        return " ".join(f"w{generator.randint(FIRST_WORD, last)}" for _ in range(tokens))

    problems = []
    for number in range(count):
        traces = (Trace(f"{words(work.trace - 2)} w{FIRST_WORD}"),) if work.trace else ()
        problems.append(Problem(str(number), words(work.prompt), "even", traces=traces))
    return problems


def reward(text: str, _answer: str = "") -> float:
    """1 where the last word has an even number: known from the length of the completion, so no group is without."""
    last = text.split()[-1] if text.split() else ""
    return float(last[:1] == "w" and last[1:].isdigit() and int(last[1:]) % 2 == 0)


class Lengths:
    """Makes a model's completions as long as asked, in turn; see the module's docstring.

    The prompts must all have the same number of tokens, and the engine must decode a token a row, pass positions or an
    unpadded cache, and begin the completions of a prompt together.
    """

    def __init__(self, lengths: Sequence[int], prompt: int) -> None:
        """lengths: of completions, the end included, at least 3. prompt: tokens of every prompt."""
        self.lengths = torch.tensor(list(lengths))
        self.prompt = prompt
        self._wanted: Tensor | None = None  # [rows], what each row of the forward pass under way must draw next
        self._prefill = False

    def attach(self, model: Any) -> None:
        """Watch the body of the model and change what its head says."""
        model.get_decoder().register_forward_pre_hook(self._before_body, with_kwargs=True)
        model.get_output_embeddings().register_forward_hook(self._after_head)

    @contextmanager
    def at_decoders(self) -> Iterator[None]:
        """Within the block, the same for every model that our engine decodes: a hook would keep one from being lean."""
        kinds: tuple[Any, ...] = (LeanDecoder, SharedPromptDecoder, PlainDecoder)
        found = [
            (kind, name, vars(kind)[name]) for kind in kinds for name in ("prefill", "decode") if name in vars(kind)
        ]
        around = {"prefill": self._around_prefill, "decode": self._around_decode}
        for kind, name, method in found:
            setattr(kind, name, around[name](method))
        try:
            yield
        finally:
            for kind, name, method in found:
                setattr(kind, name, method)

    def _around_prefill(self, prefill: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def prefill_without_end(*given: Any) -> Tensor:
            logits = prefill(*given)
            logits[..., [PAD, END]] -= CERTAIN
            return logits

        return prefill_without_end

    def _around_decode(self, decode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def decode_wanted(decoder: Decoder, tokens: Tensor, positions: Tensor) -> Tensor:
            logits = decode(decoder, tokens, positions)
            logits[torch.arange(len(tokens), device=logits.device), self._next(tokens, positions)] += CERTAIN
            return logits

        return decode_wanted

    def _before_body(self, _module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        input_ids = named.get("input_ids", positional[0] if positional else None)
        self._wanted, self._prefill = None, False
        if torch.is_grad_enabled() or input_ids is None:
            return
        if input_ids.shape[1] > 1:
            self._prefill = True
            return
        self._wanted = self._next(input_ids[:, 0], self._positions(input_ids, named))

    def _positions(self, input_ids: Tensor, named: dict[str, Any]) -> Tensor:
        positions = named.get("position_ids")
        if positions is not None:
            return positions[:, -1].expand(len(input_ids))  # type: ignore[no-any-return]
        return torch.full((len(input_ids),), named["past_key_values"].get_seq_length(), device=input_ids.device)

    def _next(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What each row draws after `tokens` at `positions`. [rows]."""
        number = positions - self.prompt  # of the token within its completion, from 0
        fresh = number == 0
        lengths = self.lengths.to(tokens.device)
        order = fresh.long().cumsum(0) - 1  # no count across passes: asked twice, the same rows get the same answer
        marks = torch.where(fresh, FIRST_WORD + order % len(lengths), tokens)
        due = number + 2 >= lengths[(marks - FIRST_WORD).clamp(0, len(lengths) - 1)]
        return torch.where(due & ~fresh, END, marks)

    def _after_head(self, _module: Any, _inputs: Any, logits: Tensor) -> None:
        if self._wanted is not None and logits.numel() == len(self._wanted) * logits.shape[-1]:
            rows = torch.arange(len(self._wanted), device=logits.device)
            logits.view(len(self._wanted), -1)[rows, self._wanted] += CERTAIN
        elif self._prefill:
            logits[..., [PAD, END]] -= CERTAIN
