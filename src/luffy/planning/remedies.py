"""What to change so that a run fits: settings by name, each tried on the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luffy.config import Config
from luffy.planning.estimate import Plan, make_plan
from luffy.planning.memory import Strategy

LEAST_BUDGET, LEAST_CHUNK = 1024, 2**20
MOST_DEVICES = 4096
RANK = 32  # of an adapter that is proposed


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changes that together make a run fit."""

    settings: tuple[str, ...]  # key=value, or an option of the command
    peak: float  # bytes on a device with them


def find_remedies(plan: Plan) -> Remedy | None:
    """The changes, gentlest first and only as many as are needed, that make it fit; None: none of them do.

    Each is tried on the plan and dropped where it does not lower the peak; the settings together are what fits.
    """
    lowered, settings = _lower(plan)
    if lowered.ok:
        return _remedy(lowered, settings)
    devices = plan.devices
    while plan.device.gpu and devices < MOST_DEVICES:
        devices *= 2
        if (fitting := _with(plan, lowered.config, devices)).ok:
            return _remedy(fitting, (*settings, f"--gpus {devices}"))
    return None


def find_adapter(plan: Plan) -> Remedy | None:
    """The same on the devices that there are, where an adapter is trained in place of all weights.

    It is another training, so it is no remedy among others. None: there is one already, or it does not fit either.
    """
    if plan.config.adapter.rank is not None:
        return None
    config = _changed(plan.config, "adapter", "rank", RANK)
    moved = config.parallel.sharding == "zero3"  # which has no adapters
    if moved:
        config = _changed(config, "parallel", "sharding", "full")
    first = (f"adapter.rank={RANK}", *(("parallel.sharding=full",) if moved else ()))
    lowered, settings = _lower(_with(plan, config, plan.devices))
    return _remedy(lowered, (*first, *settings)) if lowered.ok else None


def _lower(plan: Plan) -> tuple[Plan, tuple[str, ...]]:
    """The plan under the gentlest settings with which it fits, or under all that lower its peak; and those settings."""
    settings: dict[str, str] = {}
    if plan.ok:
        return plan, ()
    for section, key, lower in LOWERED:
        while (value := lower(plan.config)) is not None:
            tried = _with(plan, _changed(plan.config, section, key, value), plan.devices)
            if _least(tried) >= _least(plan) and not tried.ok:
                break
            plan = tried
            settings[f"{section}.{key}"] = _named(section, key, value)
            if tried.ok:
                return plan, tuple(settings.values())
    return plan, tuple(settings.values())


def _remedy(fitting: Plan, settings: tuple[str, ...]) -> Remedy:
    """The settings, and sharding where it fits in parts alone, which the recipe may not have said."""
    return Remedy((*settings, *_sharding(fitting)), _least(fitting))


def gentlest_setting(plan: Plan) -> str | None:
    """The gentlest single setting that lowers the peak at all; None: there is none."""
    for section, key, lower in LOWERED:
        value = lower(plan.config)
        if value is not None and _least(_with(plan, _changed(plan.config, section, key, value), plan.devices)) < _least(
            plan
        ):
            return _named(section, key, value)
    return None


def _named(section: str, key: str, value: Any) -> str:
    return f"{section}.{key}={str(value).lower() if isinstance(value, bool) else value}"


def _checkpointing(config: Config) -> bool | None:
    return None if config.policy.gradient_checkpointing else True


def _half_budget(config: Config) -> int | None:
    half = config.policy.token_budget // 2
    return half if half >= LEAST_BUDGET else None


def _half_batch(config: Config) -> int | None:
    half = config.rollout.batch_tokens // 2
    return half if half >= config.rollout.max_tokens else None


def _half_chunk(config: Config) -> int | None:
    half = config.policy.chunk_elements // 2
    return half if half >= LEAST_CHUNK else None


def _offload(config: Config) -> bool | None:
    return None if config.parallel.offload or config.adapter.quantize else True


def _sleep(config: Config) -> bool | None:
    asleep = config.rollout.engine != "vllm" or config.rollout.vllm.sleep or config.rollout.ahead
    return None if asleep else True


def _base_in_bfloat16(config: Config) -> str | None:
    possible = config.adapter.rank is not None and not config.parallel.zero_stage
    return "bfloat16" if possible and config.policy.dtype == "float32" else None


def _four_bits(config: Config) -> str | None:
    possible = config.adapter.rank is not None and config.parallel.sharding == "none" and not config.parallel.offload
    return "nf4" if possible and config.adapter.quantize is None else None


LOWERED: tuple[tuple[str, str, Callable[[Config], int | bool | str | None]], ...] = (  # gentlest first; None: no lower
    ("policy", "gradient_checkpointing", _checkpointing),
    ("policy", "token_budget", _half_budget),
    ("rollout", "batch_tokens", _half_batch),
    ("policy", "chunk_elements", _half_chunk),
    ("rollout", "vllm.sleep", _sleep),
    ("policy", "dtype", _base_in_bfloat16),  # of a frozen base; its adapter stays in float32
    ("parallel", "offload", _offload),  # of several devices, where weights are split
    ("adapter", "quantize", _four_bits),
)


def _changed(config: Config, section: str, key: str, value: Any) -> Config:
    part = getattr(config, section)
    outer, _, inner = key.rpartition(".")
    if outer:
        key, value = outer, getattr(part, outer).model_copy(update={inner: value})
    return config.model_copy(update={section: part.model_copy(update={key: value})})


def _with(plan: Plan, config: Config, devices: int) -> Plan:
    return make_plan(config, plan.device, devices)


def _least(plan: Plan) -> float:
    return min(one.peak for one in plan.memory.values())


def _sharding(plan: Plan) -> tuple[str, ...]:
    said = plan.config.parallel.sharding
    if said == "none":
        needed = plan.config.parallel.offload or not plan.fits("ddp")
        return ("parallel.sharding=full",) if needed else ()
    if said == "full" or plan.fits(strategy_of(plan.config, plan.devices)):
        return ()
    return (f"parallel.sharding={'full' if 'fsdp' in plan.memory and plan.fits('fsdp') else 'none'}",)


def strategy_of(config: Config, processes: int) -> Strategy:
    """What so many processes take of those that a plan shows."""
    if processes == 1 or config.parallel.sharding == "none":
        return "ddp"
    return "fsdp" if config.parallel.sharding == "full" else config.parallel.sharding
