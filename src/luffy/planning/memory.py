"""Memory of a run by part: what stays, and the larger of what an update and what generation add.

Everything is counted in bytes on one device. How many numbers the layers of a model keep for the backward pass is
counted by hand here and checked against what torch keeps (tests/planning). Not counted: the program itself (about 0.5
GB on a CPU, 1 GB with CUDA) and what the allocator loses, which is what `HEADROOM` is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luffy.config import Config
from luffy.planning.shape import ModelShape

Strategy = Literal["ddp", "fsdp"]
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
HEADROOM = 0.1  # share of the device's memory that a plan leaves free
LOGIT_BUFFERS = 3  # of a chunk's logits that exist at once: logits, shifted, probabilities
SAMPLING_BUFFERS = 3  # of the logits of all rows, where tokens are drawn
BLOCK = 64  # tokens by which the cache grows


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    engine: float
    exchange: float  # buckets of DDP; gathered layers of FSDP
    activations: float
    logits: float
    cache: float
    sampling: float

    @property
    def kept(self) -> float:
        """What is there in every part of a step."""
        return self.weights + self.optimizer + self.reference + self.engine

    @property
    def update(self) -> float:
        """What an update takes beside it."""
        return self.gradients + self.exchange + self.activations + self.logits

    @property
    def generation(self) -> float:
        """What generation takes beside it; gradients are freed by then."""
        return self.cache + self.sampling

    @property
    def peak(self) -> float:
        """The most there is at once."""
        return self.kept + max(self.update, self.generation)


def computes_bfloat16(config: Config, *, gpu: bool) -> bool:
    """Whether products are bfloat16 with weights of another type; `auto` takes it on every GPU of the table."""
    return config.policy.dtype == "float32" and (
        config.policy.autocast == "bfloat16" or (config.policy.autocast == "auto" and gpu)
    )


def kept_a_token(shape: ModelShape, repeats: float = 1.0) -> float:
    """Numbers that one layer keeps of a token for the backward pass.

    repeats: tokens in attention over tokens in the line; a prompt stands there once for each of its rows.
    """
    attention = shape.attention_width * (2 * repeats + 1) + 2 * shape.key_value_width * repeats
    if shape.gated:  # two residuals; of each norm its result before and after its weight; gate, its silu, up, product
        return 6 * shape.width + 4 * shape.inner + attention
    return 4 * shape.width + 5 * shape.inner + attention  # GELU is five steps in GPT-2


def activation_bytes(shape: ModelShape, tokens: int, size: int, *, checkpointing: bool, repeats: float = 1.0) -> float:
    """What the layers keep of a micro-batch, and the gradients in flight within one of them."""
    layer = tokens * kept_a_token(shape, repeats) * size
    in_flight = tokens * (2 * shape.inner + 2 * shape.width) * size
    ends = 4 * tokens * shape.width * size  # of the last norm, and the states that predict with their gradient
    if checkpointing:
        return shape.layers * tokens * shape.width * size + layer + in_flight + ends
    return shape.layers * layer + in_flight + ends


def logit_bytes(shape: ModelShape, tokens: int, elements: int, size: int) -> float:
    """A chunk's logits in float32 at least, and the head's gradient: of the chunks so far, and of the newest."""
    chunk = min(tokens, max(1, elements // shape.vocabulary))
    gradients = 2 if tokens > chunk else 1
    return LOGIT_BUFFERS * chunk * shape.vocabulary * max(size, 4) + gradients * shape.head_parameters * size


def longest_row(config: Config, prompt: int) -> int:
    """Tokens of the longest row that the limits allow."""
    return prompt + config.rollout.max_tokens


def estimate_memory(
    shape: ModelShape,
    config: Config,
    *,
    devices: int = 1,
    strategy: Strategy = "ddp",
    gpu: bool = False,
    prompt: int | None = None,
    tokens: int | None = None,
    repeats: float = 1.0,
) -> Memory:
    """Memory by part on each of `devices`.

    prompt: tokens of the longest; default: the limit. tokens: of the largest micro-batch; default: the budget, or the
    longest row where that is longer, which gets a micro-batch of its own.
    """
    policy = config.policy
    size, share = BYTES[policy.dtype], devices if strategy == "fsdp" else 1
    mixed = computes_bfloat16(config, gpu=gpu)
    computed = 2 if mixed else size
    prompt = config.data.max_prompt_tokens if prompt is None else prompt
    tokens = max(policy.token_budget, longest_row(config, prompt)) if tokens is None else tokens
    whole = shape.parameters * size
    activations = activation_bytes(
        shape, tokens, computed, checkpointing=policy.gradient_checkpointing, repeats=repeats
    )
    if mixed:  # the graph keeps each matrix in bfloat16; recomputed layers make theirs one at a time
        layers = 1 if policy.gradient_checkpointing else shape.layers
        activations += 2 * (layers * shape.layer_parameters + shape.head_parameters)
    rows, cached = _generated_at_once(config, devices, prompt)
    return Memory(
        weights=whole / share,
        gradients=whole / share,
        optimizer=2 * whole / share,
        reference=whole / share if config.objective.kl_coefficient else 0.0,
        engine=_engine_bytes(shape, config, mixed=mixed, sharded=share > 1),
        exchange=_exchange_bytes(shape, size, computed, devices, strategy),
        activations=activations,
        logits=logit_bytes(shape, tokens, policy.chunk_elements, size),
        cache=2.0 * shape.layers * shape.key_value_width * cached * computed,
        sampling=float(SAMPLING_BUFFERS * rows * shape.vocabulary * max(computed, 4)),
    )


def _generated_at_once(config: Config, devices: int, prompt: int) -> tuple[int, int]:
    """(rows, tokens in the cache) of one device, when all completions are as long as they may be."""
    if config.method == "sft":
        return 0, 0
    own = config.rollout.group_size - config.rollout.traces
    prompts = -(-config.problems_per_step // devices)
    a_prompt = own * (prompt + config.rollout.max_tokens)
    together = min(prompts, max(1, config.rollout.batch_tokens // a_prompt))
    blocks = -(-config.rollout.max_tokens // BLOCK) * BLOCK
    return together * own, together * (prompt + own * blocks)


def _engine_bytes(shape: ModelShape, config: Config, *, mixed: bool, sharded: bool) -> float:
    """The copy that generates: of another type, ahead of the update, or whole where the policy is sharded."""
    if config.method == "sft":
        return 0.0
    kinds = {"auto": "bfloat16" if mixed else config.policy.dtype}
    kind = kinds.get(config.rollout.dtype, config.rollout.dtype)
    copied = config.rollout.ahead or kind != config.policy.dtype or sharded
    return float(shape.parameters * BYTES[kind]) if copied and not config.rollout.device else 0.0


def _exchange_bytes(shape: ModelShape, size: int, computed: int, devices: int, strategy: Strategy) -> float:
    """DDP keeps gradients in buckets a second time; FSDP gathers two layers, embedding and head at a time."""
    if devices == 1:
        return 0.0
    if strategy == "ddp":
        return float(shape.parameters * size)
    return float((2 * shape.layer_parameters + 2 * shape.head_parameters) * computed)


def micro_batch_tokens(prompts: Sequence[int], completions: Sequence[Sequence[int]], budget: int) -> int:
    """Tokens of the largest micro-batch of groups, as `split_packed` fills them; lengths in tokens."""
    largest = size = 0
    for prompt, group in zip(prompts, completions, strict=True):
        begun = False
        for completion in group:
            more = completion - 1 + (0 if begun else prompt)
            size = size + more if size and size + more <= budget else completion - 1 + prompt
            begun, largest = True, max(largest, size)
    return largest
