"""Measure this machine: the rate of matrix products, bandwidth, and what a layer costs however small it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from luffy.planning.devices import Device, cache_file, memory_here, write_device

SIZE, REPEATS = 1024, 7


def measure_machine(file: Path | None = None) -> str:
    """Measure and keep the rates. Returns what was found as a sentence. Raises ConfigError for the file."""
    file = file or cache_file()
    device = measure_device()
    write_device(device, file)
    return (
        f"{file}: {device.flops / 1e9:.4g} GFLOP/s of large products, {device.bandwidth / 1e9:.3g} GB/s, "
        f"{device.call * 1e6:.3g} microseconds a layer at least."
    )


def measure_device() -> Device:
    """The device that torch computes on here; an update of a small model says what share of the rates it reaches."""
    import torch

    gpu = torch.cuda.is_available()
    where = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    size = 8192 if gpu else SIZE
    left, right = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))

    def product() -> None:
        left @ right
        _wait(gpu)

    flops = 2.0 * size**3 / median_seconds(product)
    source = torch.randn(2**28 if gpu else 2**24, device=where)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        _wait(gpu)

    bandwidth = 2.0 * source.numel() * 4 / median_seconds(copy)
    memory = float(torch.cuda.get_device_properties(0).total_memory) if gpu else memory_here()
    name = torch.cuda.get_device_name() if gpu else "this machine"
    return Device(name, memory, flops, bandwidth, 0.4 if gpu else 0.8, 0.8, _layer_seconds(where), "measured")


def _layer_seconds(where: object) -> float:
    """A decode step of the miniature, which is all calls and no size, over its layers."""
    import torch

    from luffy.config import Config
    from luffy.policy import load_model

    config = Config()
    model = load_model("miniature", config.policy).model.to(where)
    tokens = torch.zeros(8, 1, dtype=torch.long, device=model.device)

    def decode() -> None:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=True)
        _wait(model.device.type == "cuda")

    return median_seconds(decode) / int(model.config.num_hidden_layers)


def median_seconds(action: Callable[[], None]) -> float:
    """Median of several, after one to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _wait(gpu: bool) -> None:
    if gpu:
        import torch

        torch.cuda.synchronize()
