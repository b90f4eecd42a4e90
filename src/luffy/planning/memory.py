"""Memory of a run by part: what stays, and the larger of what an update and what generation add.

Everything is counted in bytes on one device. How many numbers the layers of a model keep for the backward pass is
counted by hand here and checked against what torch keeps (tests/planning). Not counted: the program itself (about 0.5
GB on a CPU, 1 GB with CUDA) and what the allocator loses, which is what `HEADROOM` is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from luffy.algorithm.methods import METHODS
from luffy.config import AUTOCAST_FROM, Config
from luffy.planning.shape import ModelShape

Strategy = Literal["ddp", "fsdp"]
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
HEADROOM = 0.1  # share of the device's memory that a plan leaves free
SAMPLING_BUFFERS = 3  # of the logits of all rows, where tokens are drawn
LEAST_ELEMENTS = 2**16  # of a weight that is laid out anew (rollout/packed_linear.py)
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
    layout: float = 0.0  # weights in the order that suits products of few rows, on a CPU
    accumulates: bool = True  # whether gradients of a micro-batch are there while the next one is computed

    @property
    def kept(self) -> float:
        """What is there in every part of a step."""
        return self.weights + self.optimizer + self.reference + self.engine

    @property
    def update(self) -> float:
        """What an update takes beside it; within a backward pass gradients come as activations go."""
        computed = self.activations + self.logits
        return self.exchange + (self.gradients + computed if self.accumulates else max(self.gradients, computed))

    @property
    def generation(self) -> float:
        """What generation takes beside it; gradients are freed by then."""
        return self.cache + self.sampling + self.layout

    @property
    def peak(self) -> float:
        """The most there is at once."""
        return self.kept + max(self.update, self.generation)


def computes_bfloat16(shape: ModelShape, config: Config, *, units: bool) -> bool:
    """Whether products are bfloat16 with float32 weights. units: whether the device has some for such products."""
    wanted = config.policy.autocast
    chosen = units and shape.parameters >= AUTOCAST_FROM if wanted == "auto" else wanted == "bfloat16"
    return chosen and config.policy.dtype == "float32"


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


def logit_bytes(shape: ModelShape, tokens: int, elements: int, size: int, computed: int | None = None) -> float:
    """A chunk's logits and their gradient, and the head's gradient: of the chunks so far, and of the newest.

    size: of a weight. computed: of a logit, where products have another type; the newest gradient comes in it first.
    """
    computed = computed or size
    chunk = min(tokens, max(1, elements // shape.vocabulary))
    later = min(tokens - chunk, chunk)  # the largest chunk after the first
    newest = shape.head_parameters * (size if computed == size else size + computed)

    def buffers(length: int) -> float:
        return 2.0 * length * shape.vocabulary * computed

    first = buffers(chunk) + newest
    return max(first, buffers(later) + newest + shape.head_parameters * size) if later else first


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
    units: bool = False,
    prompt: int | None = None,
    micro_batches: Sequence[int] = (),
    repeats: float = 1.0,
) -> Memory:
    """Memory by part on each of `devices`, when the most is there.

    units: whether a device multiplies bfloat16. prompt: tokens of the longest; default: the limit.
    micro_batches: tokens of each; default: several, of the budget or the longest row where that is longer, which gets a
    micro-batch of its own. repeats: see `kept_a_token`.
    """
    policy = config.policy
    size, share = BYTES[policy.dtype], devices if strategy == "fsdp" else 1
    mixed = computes_bfloat16(shape, config, units=units)
    computed = 2 if mixed else size
    prompt = config.data.max_prompt_tokens if prompt is None else prompt
    whole = shape.parameters * size
    rows, cached = _generated_at_once(config, devices, prompt)
    memory = Memory(
        weights=whole / share,
        gradients=whole / share,
        optimizer=2 * whole / share,
        reference=whole / share if config.objective.kl_coefficient else 0.0,
        engine=_engine_bytes(shape, config, mixed=mixed, sharded=share > 1),
        exchange=_exchange_bytes(shape, size, computed, devices, strategy),
        activations=0.0,
        logits=0.0,
        cache=2.0 * shape.layers * shape.key_value_width * cached * computed,
        sampling=float(SAMPLING_BUFFERS * rows * shape.vocabulary * max(computed, 4)),
        layout=0.0 if gpu else _layout_bytes(shape, config, computed, units=units),
    )
    given = micro_batches or [max(policy.token_budget, longest_row(config, prompt))] * 2
    candidates = [
        replace(
            memory,
            activations=_update_bytes(shape, config, tokens, computed, mixed=mixed, repeats=repeats),
            logits=logit_bytes(shape, tokens, policy.chunk_elements, size, computed),
            accumulates=accumulates,
        )
        for tokens, accumulates in [(given[0], False), *((tokens, True) for tokens in given[1:])]
    ]
    return max(candidates, key=lambda one: one.update)


def _update_bytes(
    shape: ModelShape, config: Config, tokens: int, computed: int, *, mixed: bool, repeats: float
) -> float:
    """Activations, and where products are bfloat16 the copies of matrices in it that the graph keeps."""
    recomputes = config.policy.gradient_checkpointing
    size = activation_bytes(shape, tokens, computed, checkpointing=recomputes, repeats=repeats)
    if mixed:  # recomputed layers make theirs one at a time
        size += 2 * ((1 if recomputes else shape.layers) * shape.layer_parameters + shape.head_parameters)
    return size


def rollouts_a_problem(config: Config) -> int:
    """Completions that are sampled of a problem: the group less the traces that join it; none without a phase of RL."""
    method, rollout = METHODS[config.method], config.rollout
    joined = rollout.traces if method.traces == "group" else 0
    return rollout.group_size - joined if "rl" in method.phases else 0


def _generated_at_once(config: Config, devices: int, prompt: int) -> tuple[int, int]:
    """(rows, tokens in the cache) of one device, when all completions are as long as they may be."""
    own = rollouts_a_problem(config)
    if not own:
        return 0, 0
    prompts = -(-config.problems_per_step // devices)
    a_prompt = own * (prompt + config.rollout.max_tokens)
    together = min(prompts, max(1, config.rollout.batch_tokens // a_prompt))
    blocks = -(-config.rollout.max_tokens // BLOCK) * BLOCK
    return together * own, together * (prompt + own * blocks)


def _engine_bytes(shape: ModelShape, config: Config, *, mixed: bool, sharded: bool) -> float:
    """The copy that generates: of another type, ahead of the update, or whole where the policy is sharded."""
    if not rollouts_a_problem(config):
        return 0.0
    kinds = {"auto": "bfloat16" if mixed else config.policy.dtype}
    kind = kinds.get(config.rollout.dtype, config.rollout.dtype)
    copied = config.rollout.ahead or kind != config.policy.dtype or sharded
    return float(shape.parameters * BYTES[kind]) if copied and not config.rollout.device else 0.0


def _layout_bytes(shape: ModelShape, config: Config, computed: int, *, units: bool) -> float:
    """The blocked copies of large weights that live while the engine of this process generates on a CPU."""
    kind = config.rollout.dtype
    size = computed if kind == "auto" else BYTES[kind]
    blocked = size == BYTES["float32"] or (size == BYTES["bfloat16"] and units)
    if not rollouts_a_problem(config) or not blocked or config.rollout.engine != "transformers":
        return 0.0
    layers = shape.layers * shape.layer_parameters if shape.width * shape.inner >= LEAST_ELEMENTS else 0
    head = shape.head_parameters if shape.head_parameters >= LEAST_ELEMENTS else 0
    return float(size) * (layers + head)


def _exchange_bytes(shape: ModelShape, size: int, computed: int, devices: int, strategy: Strategy) -> float:
    """DDP keeps gradients in buckets a second time; FSDP gathers two layers, embedding and head at a time."""
    if devices == 1:
        return 0.0
    if strategy == "ddp":
        return float(shape.parameters * size)
    return float((2 * shape.layer_parameters + 2 * shape.head_parameters) * computed)


def micro_batch_tokens(prompts: Sequence[int], completions: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Tokens of each micro-batch of groups, as `split_packed` fills them; lengths in tokens."""
    sizes: list[int] = []
    for prompt, group in zip(prompts, completions, strict=True):
        begun = False
        for completion in group:
            more = completion - 1 + (0 if begun else prompt)
            if sizes and sizes[-1] + more <= budget:
                sizes[-1] += more
            else:
                sizes.append(completion - 1 + prompt)
            begun = True
    return sizes
