"""A plan as tables that fit on a screen."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.table import Table

from luffy.planning.adapter import trained_parameters
from luffy.planning.estimate import Plan
from luffy.planning.memory import HEADROOM

PARTS = {
    "weights": "weights",
    "optimizer": "optimizer states",
    "reference": "reference model",
    "engine": "engine's weights; vLLM's cache, too",
    "unpacked": "a matrix out of 4 bits",
    "gradients": "update: gradients",
    "exchange": "update: buckets, gathered layers",
    "activations": "update: activations",
    "logits": "update: logits chunk, head's gradient",
    "cache": "generation: keys and values",
    "layout": "generation: weights laid out for few rows",
    "sampling": "generation: logits of a token",
}


def plan_tables(plan: Plan) -> Iterator[Table]:
    """Memory by part, then work, time and cost."""
    columns = [f"{name}, offloaded" if plan.offloads and name != "ddp" else name for name in plan.memory]
    memory = Table("memory on each device, GB", *columns, box=SIMPLE)
    for key, label in PARTS.items():
        values = [getattr(one, key) for one in plan.memory.values()]
        if any(values):
            memory.add_row(label, *(_gigabytes(value) for value in values))
    memory.add_row("peak: what stays and the larger of the two", *(_gigabytes(m.peak) for m in plan.memory.values()))
    memory.add_row("device", *[_gigabytes(plan.device.memory)] * len(plan.memory))
    memory.add_row(f"fits, {HEADROOM:.0%} left free", *("yes" if plan.fits(one) else "no" for one in plan.memory))
    if any(one.host for one in plan.memory.values()):
        hosts = [_gigabytes(one.host) for one in plan.memory.values()]
        memory.add_row("on the host of each process", *hosts)
    yield memory
    work, seconds = plan.work, plan.seconds
    table = Table("a step", "tokens", "TFLOP", "seconds", box=SIMPLE)
    trained = f"{work.trained_rollouts:,.0f} of rollouts, {work.trained_traces:,.0f} of traces"
    if work.generated:
        generation = f"{work.generation_flops / 1e12:.3g}"
        table.add_row("generation", f"{work.generated:,.0f}", generation, f"{seconds.generation:.3g}")
    table.add_row("update", trained, f"{work.update_flops / 1e12:.3g}", f"{seconds.update:.3g}")
    table.add_row("optimizer", "", "", f"{seconds.optimizer:.3g}")
    if seconds.exchange:
        table.add_row("exchange of gradients", "", "", f"{seconds.exchange:.3g}")
    table.add_row("step", "", "", f"{seconds.step:.3g}")
    yield table


def plan_lines(plan: Plan) -> Iterator[str]:
    """What the figures rest on, and what the run takes."""
    device = plan.device
    size = f"{plan.shape.parameters / 1e6:,.4g} million parameters"
    yield f"{plan.config.model}: {size} on {plan.devices} x {device.name}."
    yield from _of_settings(plan)
    yield (
        f"{plan.config.steps} steps: {plan.hours:.3g} hours, {plan.hours * plan.devices:.3g} device hours"
        + (f", {plan.cost:,.2f} dollars at {plan.price:g} a device and hour" if plan.cost is not None else "")
        + ", without evaluations, checkpoints and starting."
    )
    yield f"Lengths: {plan.lengths.source}."
    yield (
        f"Rates: {device.flops / 1e12:.4g} TFLOP/s, of which {device.utilisation:.0%} in an update; "
        f"{device.bandwidth / 1e9:.4g} GB/s, of which {device.decode_utilisation:.0%} in decoding ({device.source})."
    )


def _of_settings(plan: Plan) -> Iterator[str]:
    """What an adapter and offloading mean for the figures."""
    config, trained = plan.config, trained_parameters(plan.shape, plan.config)
    if config.adapter.rank is not None:
        held = ", held in 4 bits but for embedding, head and norms" if config.adapter.quantize else ""
        yield f"An adapter of {trained / 1e6:,.4g} million parameters is trained; the base is frozen{held}."
    if config.adapter.quantize:
        yield "Times leave out what it takes to dequantise, but for reading and writing. Sharding is refused with it."
    if config.rollout.engine != "transformers":
        yield from _of_vllm(plan)
    if plan.offloads:
        yield "Times leave out the copies between host and GPU and that AdamW works on the host."
    elif config.parallel.offload:
        yield "parallel.offload moves nothing here: it is for the parts of weights that are split over several GPUs."


def _of_vllm(plan: Plan) -> Iterator[str]:
    """What a plan counts of vLLM."""
    wanted = plan.config.rollout.vllm
    if plan.config.rollout.engine == "vllm_server" and wanted.server:
        yield "The server is taken to have devices of its own: nothing of it is counted."
        return
    took = min(one.engine + one.cache for one in plan.memory.values())
    share = wanted.memory_share * plan.device.memory
    if wanted.cache_gib is None and took > share:
        yield (
            f"rollout.vllm.memory_share={wanted.memory_share:g} is {_gigabytes(share)} GB; vLLM's weights and one row "
            f"take {_gigabytes(took)} GB: raise it."
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g}"
