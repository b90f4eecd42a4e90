"""Memory ran out: what the plan says of the recipe, and which setting helps."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from luffy.config import Config
from luffy.errors import LuffyError, ModelError, RunError
from luffy.planning.devices import Device, this_machine
from luffy.planning.estimate import Plan, make_plan
from luffy.planning.memory import Strategy
from luffy.planning.remedies import find_adapter, find_remedies, gentlest_setting, strategy_of

SIGNS = ("out of memory", "allocate memory", "bad_alloc", "not enough memory", "could not create a memory")


@contextmanager
def shortage_explained(config: Config, processes: int = 1) -> Iterator[None]:
    """Turn the libraries' ways of saying that memory ran out into a RunError that names the setting that helps.

    processes: that train together, each on a GPU of its own or all in the memory of this machine.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ModelError) as error:  # torch's own are RuntimeErrors
        if not is_shortage(error):
            raise
        raise RunError(explain_shortage(config, str(error) or "MemoryError", processes)) from None


def is_shortage(error: BaseException) -> bool:
    """Whether it says that memory ran out, of a GPU or of the machine."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in SIGNS)


def explain_shortage(config: Config, reason: str, processes: int = 1) -> str:
    """What ran out, how much the plan says is needed, and what to change."""
    reason = _core(reason)
    try:
        device = device_of(config, processes)
        plan = make_plan(config, device, processes)
        strategy = strategy_of(config, processes)
        needed = plan.memory[strategy].peak
        size = f"By the plan it takes up to {needed / 1e9:.3g} GB at once, and there are {device.memory / 1e9:.3g} GB"
        return f"memory ran out ({reason}). {size}. {_advice(plan, strategy)}"
    except LuffyError:  # a model whose sizes cannot be read
        return f"memory ran out ({reason}). Set policy.gradient_checkpointing=true, or lower policy.token_budget."


def _advice(plan: Plan, strategy: Strategy) -> str:
    if plan.ok and not plan.fits(strategy):
        other = "full" if strategy != "fsdp" and plan.fits("fsdp") else "none"
        return f"It fits with parallel.sharding={other} (`luffy plan` shows the parts)."
    if not plan.ok:
        return how_it_fits(plan)
    setting = gentlest_setting(plan)
    lower = f"set {setting}" if setting else "take a smaller model"
    return f"So other programs, or a limit, take the rest: end them, or {lower}."


def how_it_fits(plan: Plan) -> str:
    """A sentence about a plan that does not fit: the settings with which it does."""
    if remedy := find_remedies(plan):
        return f"It fits with {' '.join(remedy.settings)} (`luffy plan` shows the parts)."
    if adapter := find_adapter(plan):
        settings = " ".join(adapter.settings)
        return f"An adapter in place of all weights fits, with {settings} (`luffy plan` shows the parts)."
    return "No setting makes it fit: take a smaller model, or a device with more memory."


def device_of(config: Config, processes: int = 1) -> Device:
    """Where the run computes, with the memory that a process may use there."""
    import torch

    if torch.cuda.is_available() and config.policy.device != "cpu":
        memory = float(torch.cuda.get_device_properties(0).total_memory)
        return replace(this_machine(), name=torch.cuda.get_device_name(), memory=memory, gpu=True, bfloat16={})
    machine = this_machine()
    on_it = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    machine = replace(machine, memory=machine.memory / on_it)
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            machine = replace(machine, memory=min(machine.memory, float(limit)))
    return machine


def _core(reason: str) -> str:
    """The first line, without where in the library's source it was written."""
    line = reason.strip().partition("\n")[0]
    return line.rpartition("DefaultCPUAllocator: ")[2].strip().rstrip(".")
