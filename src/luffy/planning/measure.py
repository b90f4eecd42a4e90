"""Measure this machine: the constants of the plan's times, each from a small piece of the real work.

The processor's time is taken where one thread computes on a CPU, so that what else the machine does is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luffy.planning.devices import Device, cache_file, memory_here, write_device
from luffy.planning.machine import multiplies_bfloat16
from luffy.planning.memory import kept_a_token
from luffy.planning.shape import shape_of

if TYPE_CHECKING:
    import torch

REPEATS = 5
WIDTH, INNER, LAYERS, VOCABULARY = 512, 1536, 2, 8192  # of the model whose update is measured
ROWS, LENGTH = 8, 128  # of the update and of a decode step


def measure_machine(file: Path | None = None) -> str:
    """Measure and keep the rates. Returns what was found as a sentence. Raises ConfigError for the file."""
    file = file or cache_file()
    device = measure_device()
    write_device(device, file)
    return (
        f"{file}: {device.flops / 1e9:.4g} GFLOP/s of a layer's products, {device.bandwidth / 1e9:.3g} GB/s, "
        f"{device.decode_utilisation:.0%} of it in decoding, {device.call * 1e6:.3g} microseconds a layer at least, "
        f"{device.token * 1e6:.3g} a token; {device.number * 1e9:.3g} ns a number kept, "
        f"{device.logit * 1e9:.3g} a logit."
    )


def measure_device() -> Device:
    """The device that torch computes on here."""
    import torch

    gpu = torch.cuda.is_available()
    where = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    size = 4 if gpu else 1  # widths are multiples of it: a GPU is measured on more
    bandwidth = _copy_rate(where, size)
    rates = _rates(where, dtype, size, bandwidth)
    in_bfloat16 = {} if gpu else _rates(where, torch.bfloat16, size, bandwidth) if multiplies_bfloat16() else None
    call, token = _decode_overhead(where, lean=False)
    return Device(
        torch.cuda.get_device_name() if gpu else "this machine",
        float(torch.cuda.get_device_properties(0).total_memory) if gpu else memory_here(),
        bandwidth=bandwidth,
        utilisation=1.0,
        call=call,
        token=token,
        draw=_draw_seconds(where),
        source="measured",
        gpu=gpu,
        bfloat16=in_bfloat16,
        lean=None if gpu else dict(zip(("call", "token"), _decode_overhead(where, lean=True), strict=True)),
        **rates,
    )


def _rates(where: torch.device, dtype: torch.dtype, size: int, bandwidth: float) -> dict[str, float]:
    """The rates of a device that depend on the type of its products, by their names there."""
    flops, number, logit = _update_rates(where, dtype, size)
    reading, decode_flops = _decode_rates(where, dtype, size)
    return {
        "flops": flops,
        "number": number,
        "logit": logit,
        "decode_utilisation": reading / bandwidth,
        "decode_flops": decode_flops,
    }


def least_seconds(*actions: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """The least of several, of actions in turn, after one to warm up: what else the machine does only adds."""
    import torch

    clock = time.process_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats + 1):
        for action, measured in zip(actions, times, strict=True):
            started = clock()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            measured.append(clock() - started)
    return [min(measured[1:]) for measured in times]


def _products(where: torch.device, dtype: torch.dtype, size: int) -> tuple[Callable[[], None], float]:
    """A layer's widest product, forward and both backward, and how many operations that is."""
    import torch

    tokens, width, inner = ROWS * LENGTH * size, WIDTH * size, INNER * size
    states, weight, gradient = (
        torch.randn(*shape, device=where, dtype=dtype) for shape in ((tokens, width), (inner, width), (tokens, inner))
    )

    def multiply() -> None:
        states @ weight.T
        gradient @ weight
        gradient.T @ states

    return multiply, 6.0 * tokens * width * inner


def _copy_rate(where: torch.device, size: int) -> float:
    """Bytes a second, read and written."""
    import torch

    source = torch.randn(size * 2**24, device=where)
    target = torch.empty_like(source)
    return 2.0 * source.numel() * 4 / least_seconds(lambda: target.copy_(source))[0]


def _decode_rates(where: torch.device, dtype: torch.dtype, size: int) -> tuple[float, float]:
    """Of products with few rows: bytes of weights a second that they read, and operations a second that rows add.

    The weights are too many for a cache, and laid out as the engine lays them out.
    """
    import torch

    from luffy.rollout.packed_linear import packed_linears

    layers = [torch.nn.Linear(WIDTH * size, INNER * size, bias=False) for _ in range(32)]
    stack = torch.nn.ModuleList(layers).to(device=where, dtype=dtype)
    parameters = 32 * WIDTH * INNER * size**2
    few, many = (torch.randn(rows, WIDTH * size, device=where, dtype=dtype) for rows in (ROWS, 8 * ROWS))

    def multiply(states: torch.Tensor) -> None:
        for layer in layers:
            layer(states)

    with torch.no_grad(), packed_linears(stack, LENGTH):
        of_few, of_many = least_seconds(partial(multiply, few), partial(multiply, many))
    a_row = (of_many - of_few) / (len(many) - len(few))
    of_none = max(of_few - len(few) * a_row, 0.1 * of_few)
    return parameters * few.element_size() / of_none, 2.0 * parameters / a_row


def _decode_overhead(where: torch.device, *, lean: bool) -> tuple[float, float]:
    """Seconds of a layer, and of a decode step outside the layers: of two models that are all calls and no size.

    lean: whether a decode step may be made of few calls (rollout/lean.py); else the library's forward pass makes it.
    """
    from luffy.rollout import Sampling, TransformersEngine

    few, many = 2, 8
    actions = []
    for layers in (few, many):
        model = _random_model(64, 128, layers, 64).to(where)
        if not lean:
            model.register_forward_hook(lambda *_: None)  # a model with a hook is decoded by its own forward pass
        engine = TransformersEngine(model, eos_ids=[], pad_id=0)  # nothing ends a completion
        actions.append(partial(engine.generate, [[1, 2, 3]], ROWS, Sampling(LENGTH)))
    shallow, deep = (seconds / LENGTH for seconds in least_seconds(*actions))
    call = (deep - shallow) / (many - few)
    return max(0.0, call), max(0.0, shallow - few * call)


def _update_rates(where: torch.device, dtype: torch.dtype, size: int) -> tuple[float, float, float]:
    """Operations a second of products; seconds of a number that a layer keeps, and of a logit, beyond its products.

    On a CPU weights are float32, and products of bfloat16 are those of autocast.
    """
    import torch

    from luffy.policy import Scorer

    mixed = where.type == "cpu" and dtype == torch.bfloat16
    model = _random_model(WIDTH * size, INNER * size, LAYERS, VOCABULARY * size)
    model = model.to(device=where, dtype=torch.float32 if mixed else dtype)
    scorer = Scorer(model, pad_id=0, chunk_elements=2**24, autocast="bfloat16" if mixed else "none")
    prompts = [[1]] * ROWS
    completions = [[2 + place % 50 for place in range(LENGTH)]] * ROWS

    def update() -> None:
        scorer(prompts, completions, loss=lambda scores, _: scores.logprobs.sum()).loss.backward()

    def states() -> None:
        with scorer._precision():
            found = scorer._states(prompts, completions)[0].sum()
        found.backward()

    multiply, operations = _products(where, dtype, size)
    update()  # tries the model's paths
    products, body, whole = least_seconds(multiply, states, update, repeats=2 * REPEATS)
    flops = operations / products
    shape, scored = shape_of(model.config.to_dict()), ROWS * LENGTH
    tokens = 1 + ROWS * (LENGTH - 1)
    of_layers = 6.0 * tokens * LAYERS * shape.layer_parameters / flops
    of_head = 6.0 * scored * shape.head_parameters / flops
    number = (body - of_layers) / (tokens * LAYERS * kept_a_token(shape, scored / tokens))
    logit = (whole - body - of_head) / (scored * shape.vocabulary)
    return flops, max(0.0, number), max(0.0, logit)


def _random_model(width: int, inner: int, layers: int, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _draw_seconds(where: torch.device) -> float:
    """Seconds a logit."""
    import torch

    from luffy.rollout import Sampling
    from luffy.rollout.sampling import draw_tokens

    logits, noise = torch.randn(ROWS, 32768, device=where), torch.rand(ROWS, device=where)
    return least_seconds(lambda: draw_tokens(logits, Sampling(1), noise))[0] / logits.numel()
