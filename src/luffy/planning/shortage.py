"""Memory ran out: what the plan says of the recipe, and which setting helps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from luffy.config import Config
from luffy.errors import LuffyError, ModelError, RunError
from luffy.planning.devices import Device, this_machine
from luffy.planning.estimate import Plan, make_plan
from luffy.planning.remedies import find_remedies, gentlest_setting

SIGNS = ("out of memory", "allocate memory", "bad_alloc", "not enough memory", "could not create a memory")


@contextmanager
def shortage_explained(config: Config) -> Iterator[None]:
    """Turn the libraries' ways of saying that memory ran out into a RunError that names the setting that helps."""
    try:
        yield
    except (MemoryError, RuntimeError, ModelError) as error:  # torch's own are RuntimeErrors
        if not is_shortage(error):
            raise
        raise RunError(explain_shortage(config, str(error) or "MemoryError")) from None


def is_shortage(error: BaseException) -> bool:
    """Whether it says that memory ran out, of a GPU or of the machine."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in SIGNS)


def explain_shortage(config: Config, reason: str) -> str:
    """What ran out, how much the plan says is needed, and what to change."""
    reason = _core(reason)
    try:
        device = _device_of(config)
        plan = make_plan(config, device)
        needed = min(memory.peak for memory in plan.memory.values())
        size = f"By the plan it takes up to {needed / 1e9:.3g} GB at once, and there are {device.memory / 1e9:.3g} GB"
        return f"memory ran out ({reason}). {size}. {_advice(plan)}"
    except LuffyError:  # a model whose sizes cannot be read
        return f"memory ran out ({reason}). Set policy.gradient_checkpointing=true, or lower policy.token_budget."


def _advice(plan: Plan) -> str:
    if not plan.ok:
        remedy = find_remedies(plan)
        if remedy is None:
            return "No setting makes it fit: take a smaller model, or a device with more memory."
        return f"It fits with {' '.join(remedy.settings)} (`luffy plan` shows the parts)."
    setting = gentlest_setting(plan)
    lower = f"set {setting}" if setting else "take a smaller model"
    return f"So other programs, or a limit, take the rest: end them, or {lower}."


def _device_of(config: Config) -> Device:
    """Where the run computes, with the memory that it may use there."""
    import torch

    if torch.cuda.is_available() and config.policy.device != "cpu":
        memory = float(torch.cuda.get_device_properties(0).total_memory)
        return replace(this_machine(), name=torch.cuda.get_device_name(), memory=memory, gpu=True, bfloat16={})
    machine = this_machine()
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
