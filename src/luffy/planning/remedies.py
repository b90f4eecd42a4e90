"""What to change so that a run fits: settings by name, each tried on the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luffy.config import Config
from luffy.planning.estimate import Plan, make_plan

LEAST_BUDGET, LEAST_CHUNK = 1024, 2**20
MOST_DEVICES = 4096


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changes that together make a run fit."""

    settings: tuple[str, ...]  # key=value, or an option of the command
    peak: float  # bytes on a device with them


def find_remedies(plan: Plan) -> Remedy | None:
    """The changes, gentlest first and only as many as are needed, that make it fit; None: none of them do.

    Each is tried on the plan and dropped where it does not lower the peak; the settings together are what fits.
    """
    settings: dict[str, str] = {}
    config, peak = plan.config, _least(plan)
    for section, key, lower in LOWERED:
        while (value := lower(config)) is not None:
            changed = _changed(config, section, key, value)
            tried = _with(plan, changed, plan.devices)
            if _least(tried) >= peak and not tried.ok:
                break
            config, peak = changed, _least(tried)
            settings[f"{section}.{key}"] = _named(section, key, value)
            if tried.ok:
                return Remedy(tuple(settings.values()), peak)
    devices = plan.devices
    while plan.device.gpu and devices < MOST_DEVICES:
        devices *= 2
        if (fitting := _with(plan, config, devices)).ok:
            return Remedy((*settings.values(), f"--gpus {devices}", *_sharding(fitting)), _least(fitting))
    return None


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
    return f"{section}.{key}={str(value).lower()}"


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


LOWERED: tuple[tuple[str, str, Callable[[Config], int | bool | None]], ...] = (  # gentlest first; None: no lower
    ("policy", "gradient_checkpointing", _checkpointing),
    ("policy", "token_budget", _half_budget),
    ("rollout", "batch_tokens", _half_batch),
    ("policy", "chunk_elements", _half_chunk),
)


def _changed(config: Config, section: str, key: str, value: Any) -> Config:
    part = getattr(config, section).model_copy(update={key: value})
    return config.model_copy(update={section: part})


def _with(plan: Plan, config: Config, devices: int) -> Plan:
    return make_plan(config, plan.device, devices)


def _least(plan: Plan) -> float:
    return min(one.peak for one in plan.memory.values())


def _sharding(plan: Plan) -> tuple[str, ...]:
    return () if plan.fits("ddp") else ("parallel.sharding=full",)
