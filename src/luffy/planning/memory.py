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
from luffy.planning.adapter import (
    held_bytes,
    kept_beside_frozen,
    trained_parameters,
    trained_size,
    unpacked_bytes,
)
from luffy.planning.shape import ModelShape
from luffy.planning.zero import split_by_zero

Strategy = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
HEADROOM = 0.1  # share of the device's memory that a plan leaves free
SAMPLING_BUFFERS = 3  # of the logits of all rows, where tokens are drawn
LEAST_ELEMENTS = 2**16  # of a weight that is laid out anew (rollout/packed_linear.py)
LARGEST_COPY = 2**22  # elements of joined weights that are copied as they are (there, too)
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
    unpacked: float = 0.0  # a matrix of a base in 4 bits, dequantised while it is multiplied
    host: float = 0.0  # beside the device's: what `parallel.offload` leaves in the host's memory, of one process
    accumulates: bool = True  # whether gradients of a micro-batch are there while the next one is computed

    @property
    def kept(self) -> float:
        """What is there in every part of a step."""
        return self.weights + self.optimizer + self.reference + self.engine + self.unpacked

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


def kept_by(shape: ModelShape, config: Config, repeats: float, computed: int, *, mixed: bool, gpu: bool) -> float:
    """The same for what the recipe trains: all weights, or an adapter beside frozen ones."""
    if config.adapter.rank is None:
        return kept_a_token(shape, repeats)
    return kept_beside_frozen(shape, config, repeats, computed, mixed=mixed, gpu=gpu)


def activation_bytes(
    shape: ModelShape, config: Config, tokens: int, size: int, *, mixed: bool, gpu: bool, repeats: float = 1.0
) -> float:
    """What the layers keep of a micro-batch, and the gradients in flight within one of them."""
    layer = tokens * kept_by(shape, config, repeats, size, mixed=mixed, gpu=gpu) * size
    widest = 2 if config.adapter.rank is None else 3  # an adapter's part of the widest gradient comes beside the base's
    in_flight = tokens * (widest * shape.inner + 2 * shape.width) * size
    ends = 4 * tokens * shape.width * size  # of the last norm, and the states that predict with their gradient
    if config.policy.gradient_checkpointing:
        return shape.layers * tokens * shape.width * size + layer + in_flight + ends
    return shape.layers * layer + in_flight + ends


def logit_bytes(
    shape: ModelShape, tokens: int, elements: int, size: int, computed: int | None = None, *, frozen: bool = False
) -> float:
    """A chunk's logits and their gradient, and the head's gradient: of the chunks so far, and of the newest.

    size: of a weight. computed: of a logit, where products have another type; the newest gradient comes in it first.
    frozen: whether the head has no gradient.
    """
    computed = computed or size
    chunk = min(tokens, max(1, elements // shape.vocabulary))
    if frozen:
        return 2.0 * chunk * shape.vocabulary * computed
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
    device_memory: float | None = None,
) -> Memory:
    """Memory by part on each of `devices`, when the most is there.

    units: whether a device multiplies bfloat16. prompt: tokens of the longest; default: the limit.
    micro_batches: tokens of each; default: several, of the budget or the longest row where that is longer, which gets a
    micro-batch of its own. repeats: see `kept_a_token`. device_memory: bytes, of which vLLM takes its share.
    """
    policy, trained = config.policy, trained_parameters(shape, config)
    sharded = strategy in ("fsdp", "zero3") and devices > 1  # whether weights are whole while they compute alone
    size, share = BYTES[policy.dtype], devices if strategy == "fsdp" else 1
    mixed = computes_bfloat16(shape, config, units=units)
    gathered = config.parallel.param_dtype == "bfloat16" and sharded
    computed = 2 if mixed or gathered else size
    prompt = config.data.max_prompt_tokens if prompt is None else prompt
    whole, of_trained = held_bytes(shape, config, size), float(trained * trained_size(config, size))
    penalised = config.objective.kl_coefficient > 0 and config.adapter.rank is None  # else: the base under the adapter
    rows, cached = _generated_at_once(config, devices, prompt)
    memory = Memory(
        weights=whole / share,
        gradients=of_trained / share,
        optimizer=2 * of_trained / share,
        reference=whole / share if penalised else 0.0,
        engine=engine_bytes(shape, config, mixed=mixed, sharded=sharded),
        exchange=_exchange_bytes(shape, of_trained, computed, devices, strategy),
        activations=0.0,
        logits=0.0,
        cache=2.0 * shape.layers * shape.key_value_width * cached * computed,
        sampling=float(SAMPLING_BUFFERS * rows * shape.vocabulary * max(computed, 4)),
        layout=0.0 if gpu else _layout_bytes(shape, config, mixed=mixed, sharded=sharded, units=units),
        unpacked=unpacked_bytes(shape, config, computed),
    )
    if _generates_by_vllm(config):
        memory = _with_vllm(memory, shape, config, mixed=mixed, sharded=sharded, device_memory=device_memory)
    offloaded = gpu and devices > 1 and config.parallel.offload
    if strategy.startswith("zero") and devices > 1:
        memory = split_by_zero(memory, int(strategy[4:]), devices, trained=of_trained, offloaded=offloaded)
    elif sharded and offloaded:
        memory = _offloaded(memory)
    given = micro_batches or [max(policy.token_budget, longest_row(config, prompt))] * 2
    candidates = [
        replace(
            memory,
            activations=_update_bytes(shape, config, tokens, computed, mixed=mixed, gpu=gpu, repeats=repeats),
            logits=logit_bytes(
                shape, tokens, policy.chunk_elements, size, computed, frozen=config.adapter.rank is not None
            ),
            accumulates=accumulates,
        )
        for tokens, accumulates in [(given[0], False), *((tokens, True) for tokens in given[1:])]
    ]
    return max(candidates, key=lambda one: one.update)


def _update_bytes(
    shape: ModelShape, config: Config, tokens: int, computed: int, *, mixed: bool, gpu: bool, repeats: float
) -> float:
    """Activations, and where products are bfloat16 the copies of matrices in it that the graph keeps."""
    recomputes = config.policy.gradient_checkpointing
    size = activation_bytes(shape, config, tokens, computed, mixed=mixed, gpu=gpu, repeats=repeats)
    if mixed:  # recomputed layers make theirs one at a time; of a base in 4 bits none is kept
        layers = 0 if config.adapter.quantize else 1 if recomputes else shape.layers
        size += 2 * (layers * shape.layer_parameters + shape.head_parameters)
    return size


def _offloaded(memory: Memory) -> Memory:
    """The parts of a split policy lie on the host; what computes (gathered layers, activations) stays on the device."""
    host = memory.host + memory.weights + memory.gradients + memory.optimizer + memory.reference
    return replace(memory, weights=0.0, gradients=0.0, optimizer=0.0, reference=0.0, host=host)


def _generates_by_vllm(config: Config) -> bool:
    return config.rollout.engine != "transformers" and rollouts_a_problem(config) > 0


def _with_vllm(
    memory: Memory, shape: ModelShape, config: Config, *, mixed: bool, sharded: bool, device_memory: float | None
) -> Memory:
    """The same where vLLM generates: weights of its own and a cache that stays, its logits counted within its share.

    A server that was there before has a device of its own. One that sleeps is away while the policy is updated.
    """
    wanted, apart = config.rollout.vllm, config.rollout.engine == "vllm_server"
    memory = replace(memory, cache=0.0, sampling=0.0, layout=0.0)
    if apart and wanted.server:
        return replace(memory, engine=0.0)
    size = BYTES[_generating_type(config, mixed=mixed, sharded=sharded)]
    weights = float(shape.parameters * size)
    a_row = wanted.max_length or longest_row(config, config.data.max_prompt_tokens)
    cache = 2.0 * shape.layers * shape.key_value_width * a_row * size  # of one row: the least that it starts with
    if wanted.cache_gib is not None:
        cache = wanted.cache_gib * 2**30
    elif device_memory is not None:
        cache = max(cache, wanted.memory_share * device_memory - weights)
    if wanted.sleep and not apart:
        return replace(memory, engine=0.0, cache=weights + cache, host=weights)
    return replace(memory, engine=weights + cache)


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


def engine_bytes(shape: ModelShape, config: Config, *, mixed: bool, sharded: bool = False) -> float:
    """The copy that generates: of another type, ahead of the update, or whole where the policy is sharded.

    An adapter is merged into it, and it is never in 4 bits.
    """
    if not rollouts_a_problem(config):
        return 0.0
    kind = _generating_type(config, mixed=mixed, sharded=sharded)
    copied = config.rollout.ahead or kind != config.policy.dtype or sharded
    return float(shape.parameters * BYTES[kind]) if copied and not config.rollout.device else 0.0


def _generating_type(config: Config, *, mixed: bool, sharded: bool) -> str:
    in_bfloat16 = mixed or (sharded and config.parallel.param_dtype == "bfloat16")
    kinds = {"auto": "bfloat16" if in_bfloat16 else config.policy.dtype}
    return kinds.get(config.rollout.dtype, config.rollout.dtype)


def decodes_lean(shape: ModelShape, config: Config, *, mixed: bool, sharded: bool = False) -> bool:
    """Whether a CPU decodes the model in few calls: one that is known, with no adapter beside its modules."""
    plain = config.adapter.rank is None or engine_bytes(shape, config, mixed=mixed, sharded=sharded) > 0
    return shape.lean and plain and config.rollout.engine == "transformers"


def _layout_bytes(shape: ModelShape, config: Config, *, mixed: bool, sharded: bool, units: bool) -> float:
    """The copies of weights that live while the engine of this process generates on a CPU: blocked, or joined."""
    if not rollouts_a_problem(config) or config.rollout.engine != "transformers":
        return 0.0
    size = BYTES[_generating_type(config, mixed=mixed, sharded=sharded)]
    blocked = size == BYTES["float32"] or (size == BYTES["bfloat16"] and units)
    in_4_bits = config.adapter.quantize is not None and not engine_bytes(shape, config, mixed=mixed, sharded=sharded)
    lean = decodes_lean(shape, config, mixed=mixed, sharded=sharded)
    layers = 0 if in_4_bits else shape.layers * _copied_parameters(shape, blocked=blocked, lean=lean)
    head = shape.head_parameters if blocked and shape.head_parameters >= LEAST_ELEMENTS else 0
    return float(size) * (layers + head)


def _copied_parameters(shape: ModelShape, *, blocked: bool, lean: bool) -> int:
    """Of one layer: large matrices in their own order, and those that are joined as they read the same."""
    if not shape.gated:
        return 0  # GPT-2's matrices are no linear layers of torch
    copied = 0
    for read in dict.fromkeys(matrix.reads for matrix in shape.matrices):
        sizes = [matrix.inputs * matrix.outputs for matrix in shape.matrices if matrix.reads == read]
        joined = lean and len(sizes) > 1 and sum(sizes) <= LARGEST_COPY
        copied += sum(size for size in sizes if joined or (blocked and size >= LEAST_ELEMENTS))
    return copied


def _exchange_bytes(shape: ModelShape, trained: float, computed: int, devices: int, strategy: Strategy) -> float:
    """DDP keeps gradients in buckets a second time; FSDP gathers two layers, embedding and head at a time."""
    if devices == 1:
        return 0.0
    if strategy == "ddp":
        return trained
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
