"""Tokens, operations and seconds of a step, by part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luffy.algorithm.methods import METHODS
from luffy.config import MINIATURE, Config
from luffy.files import parse_json
from luffy.planning.adapter import (
    adapted_matrices,
    adapter_parameters,
    packed_parameters,
    trained_parameters,
    trained_size,
)
from luffy.planning.devices import Device
from luffy.planning.memory import BYTES, computes_bfloat16, decodes_lean, engine_bytes, kept_by, rollouts_a_problem
from luffy.planning.shape import ModelShape

ADAPTED_CALL = 0.4  # of a layer's least time, which a matrix's adapter adds to it; measured on a CPU, as `call` is
MEAN_SHARE = 0.4  # of rollout.max_tokens that a completion has on average, where nothing is known


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts, rollouts and traces, on average, and where that comes from."""

    prompt: float
    rollout: float
    trace: float
    source: str
    longest: float | None = None  # rollout of a batch; None: as long as may be


@dataclass(frozen=True, slots=True)
class Work:
    """A step of all devices together."""

    generated: float  # tokens
    trained_rollouts: float  # tokens, prompts not counted
    trained_traces: float
    prompts: float  # tokens, each prompt once
    generation_flops: float
    update_flops: float


@dataclass(frozen=True, slots=True)
class Seconds:
    """A step, by part."""

    generation: float
    update: float
    optimizer: float
    exchange: float

    @property
    def step(self) -> float:
        """All of it; verifying runs beside generation."""
        return self.generation + self.update + self.optimizer + self.exchange


def assume_lengths(config: Config, *, rollout: float | None = None) -> Lengths:
    """Lengths from a local data file (4 characters a token), the miniature's own, or else a share of the limits.

    rollout: tokens of a completion on average, if it is known.
    """
    limit = config.rollout.max_tokens
    if config.data.train == MINIATURE and config.model.startswith(MINIATURE):
        mean = rollout or 0.55 * limit
        return Lengths(22, mean, 0.6 * limit, "the miniature's: rollouts 55 %, traces 60 % of rollout.max_tokens")
    file = Path(config.data.train)
    found = _of_file(file) if file.suffix == ".jsonl" and file.is_file() else None
    if found:
        prompt, trace = found
        given = f"rollouts {'as given' if rollout else 'as the traces'}"
        return Lengths(
            prompt, min(limit, rollout or trace), min(limit, trace), f"{file}, 4 characters a token; {given}"
        )
    mean = rollout or MEAN_SHARE * limit
    how = "as given" if rollout else f"{MEAN_SHARE:.0%} of rollout.max_tokens"
    prompt = min(config.data.max_prompt_tokens, 150)
    return Lengths(prompt, mean, MEAN_SHARE * limit, f"assumed: rollouts {how}, traces {MEAN_SHARE:.0%} of it")


def _of_file(file: Path, rows: int = 1000) -> tuple[float, float] | None:
    """Mean tokens of prompts and of traces in the first rows of a file of our own format; None: it has none."""
    prompts: list[int] = []
    traces: list[int] = []
    with file.open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(rows), strict=False):
            try:
                row = parse_json(line)
                prompts.append(len(row["prompt"]) if isinstance(row["prompt"], str) else len(json.dumps(row["prompt"])))
                texts = [one if isinstance(one, str) else one["text"] for one in row.get("traces", ())]
                traces += [len(text) for text in texts[:1]]
            except (ValueError, KeyError, TypeError):
                return None
    return (_mean(prompts) / 4, _mean(traces) / 4) if prompts and traces else None


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def count_work(shape: ModelShape, config: Config, lengths: Lengths) -> Work:
    """Tokens and operations of a step: 2 a parameter and token forward, 4 backward, 2 more where it is recomputed.

    A frozen parameter has 2 backward: the gradient goes on to what lies below, and there is none of the parameter.
    """
    method = METHODS[config.method]
    own = rollouts_a_problem(config)
    if not own:
        traces = config.sft.batch_size * lengths.trace
        prompts = config.sft.batch_size * lengths.prompt
        return Work(0, 0, traces, prompts, 0, _update_flops(shape, config, prompts, [(traces, lengths.trace)]))
    learned = config.rollout.traces if method.traces != "none" else 0
    groups = config.problems_per_step
    generated = groups * own * lengths.rollout
    traces = groups * learned * lengths.trace
    prompts = groups * lengths.prompt
    attended = 2 * 2 * shape.layers * shape.attention_width * generated * (lengths.prompt + lengths.rollout / 2)
    body = shape.layers * shape.layer_parameters
    generation = 2 * body * (generated + prompts) + 2 * shape.head_parameters * generated + attended
    update = _update_flops(shape, config, prompts, [(generated, lengths.rollout), (traces, lengths.trace)])
    return Work(generated, generated, traces, prompts, generation, update)


def _update_flops(shape: ModelShape, config: Config, prompts: float, parts: Sequence[tuple[float, float]]) -> float:
    """parts: (tokens, their length); a causal query meets half of its row's keys, in two products."""
    passes = 4 if config.policy.gradient_checkpointing else 3
    spared = 0 if config.adapter.rank is None else 1
    tokens = prompts + sum(count for count, _ in parts)
    body = 2 * shape.layers * shape.layer_parameters * tokens
    adapter = 2 * adapter_parameters(shape, config) * tokens
    attention = sum(2 * 2 * shape.layers * shape.attention_width * count * length / 2 for count, length in parts)
    head = 2 * shape.head_parameters * sum(count for count, _ in parts)
    return (passes - spared) * body + passes * (attention + adapter) + (3 - spared) * head


def time_step(
    shape: ModelShape, config: Config, lengths: Lengths, work: Work, device: Device, devices: int, *,
    link: float = 100e9,
) -> Seconds:  # fmt: skip
    """Seconds of a step's parts. link: bytes a second between devices.

    The optimizer reads weights, gradients and two moments, writes three of them, and clipping reads and scales
    gradients.
    """
    size = BYTES[config.policy.dtype]
    mixed = computes_bfloat16(shape, config, units=device.bfloat16 is not None)
    computed = 2 if mixed else size
    device = device.computing_bfloat16() if mixed else device
    update = work.update_flops / (device.flops * device.utilisation) + _beyond_products(
        shape, config, lengths, work, device
    )
    update = update / devices + _micro_batches(config, work, devices) * shape.layers * 4 * device.call
    changed = float(trained_parameters(shape, config) * trained_size(config, size))  # bytes
    optimizer = 10.0 * changed / device.bandwidth * config.updates_per_step
    exchange = 2.0 * changed / link * config.updates_per_step if devices > 1 else 0.0
    return Seconds(_generation(shape, config, lengths, work, device, devices, computed), update, optimizer, exchange)


def _beyond_products(shape: ModelShape, config: Config, lengths: Lengths, work: Work, device: Device) -> float:
    """Seconds of an update outside its products: for each number that layers keep, and for each logit."""
    trained = work.trained_rollouts + work.trained_traces
    rows = work.trained_rollouts / (lengths.rollout or 1) + work.trained_traces / (lengths.trace or 1)
    tokens = work.prompts + trained
    repeats = (rows * lengths.prompt + trained) / tokens if tokens else 1.0
    passes = 4 / 3 if config.policy.gradient_checkpointing else 1.0  # of three: forward once, backward about twice
    mixed = computes_bfloat16(shape, config, units=device.bfloat16 is not None)
    computed = 2 if mixed else BYTES[config.policy.dtype]
    kept = kept_by(shape, config, repeats, computed, mixed=mixed, gpu=device.gpu)
    numbers = tokens * shape.layers * kept * passes
    return numbers * device.number + trained * shape.vocabulary * device.logit


def _micro_batches(config: Config, work: Work, devices: int) -> float:
    tokens = (work.prompts + work.trained_rollouts + work.trained_traces) / devices
    return max(float(config.updates_per_step), tokens / config.policy.token_budget)


def _generation(
    shape: ModelShape, config: Config, lengths: Lengths, work: Work, device: Device, devices: int, computed: int
) -> float:
    """A decode step reads the weights that generate and the rows' cache, and multiplies each row with the weights.

    There are as many as the longest completion has tokens, with fewer rows as they end: the mean over the longest.
    """
    if not work.generated:
        return 0.0
    rows = work.generated / lengths.rollout / devices
    limit, longest = config.rollout.max_tokens, lengths.longest or config.rollout.max_tokens
    together = min(rows, max(1.0, config.rollout.batch_tokens / (lengths.prompt + limit)))
    steps = longest * (rows / together)  # the longest of each wave
    alive = together * min(1.0, lengths.rollout / longest)  # rows on average
    held = alive * (lengths.prompt + lengths.rollout / 2)
    mixed = computed < BYTES[config.policy.dtype]
    in_place = config.rollout.engine == "transformers" and not engine_bytes(shape, config, mixed=mixed)
    device = device.decoding_lean() if decodes_lean(shape, config, mixed=mixed) else device
    packed = packed_parameters(shape, config) if in_place else 0  # dequantised: written, and then read like others
    read = (shape.parameters + packed) * computed + 2 * shape.layers * shape.key_value_width * held * computed
    reading = read / (device.bandwidth * device.decode_utilisation)
    multiplying = 2 * shape.parameters * alive / (device.decode_flops or device.flops * device.utilisation)
    calls = 1 + (ADAPTED_CALL * len(adapted_matrices(shape, config)) if in_place else 0)
    overhead = shape.layers * calls * device.call + device.token + alive * shape.vocabulary * device.draw
    prefill = 2 * shape.layers * shape.layer_parameters * work.prompts / devices / (device.flops * device.utilisation)
    return steps * (reading + multiplying + overhead) + prefill
