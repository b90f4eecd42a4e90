"""A plan: memory, work, time and cost of a recipe on given devices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from luffy.config import Config
from luffy.planning.adapter import trained_parameters
from luffy.planning.devices import Device
from luffy.planning.memory import HEADROOM, Memory, Strategy, estimate_memory
from luffy.planning.shape import ModelShape, read_shape
from luffy.planning.work import Lengths, Seconds, Work, assume_lengths, count_work, time_step


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe needs on `devices` of one kind."""

    config: Config
    shape: ModelShape
    device: Device
    devices: int
    memory: dict[Strategy, Memory]
    lengths: Lengths
    work: Work
    seconds: Seconds
    price: float | None  # a device and hour

    def fits(self, strategy: Strategy) -> bool:
        """Whether the peak leaves the headroom free."""
        return self.memory[strategy].peak <= (1 - HEADROOM) * self.device.memory

    @property
    def ok(self) -> bool:
        """Whether any strategy fits."""
        return any(map(self.fits, self.memory))

    @property
    def offloads(self) -> bool:
        """Whether the parts of a split policy lie on the host."""
        return self.config.parallel.offload and any(one.host for one in self.memory.values())

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.seconds.step * self.config.steps / 3600

    @property
    def cost(self) -> float | None:
        """Of the whole run."""
        return None if self.price is None else self.hours * self.devices * self.price

    def to_json(self) -> dict[str, Any]:
        """Plain values; memory in bytes."""
        memory = {name: asdict(one) | {"peak": one.peak, "fits": self.fits(name)} for name, one in self.memory.items()}
        return {
            "fits": self.ok,
            "model": self.config.model,
            "parameters": self.shape.parameters,
            "trained_parameters": trained_parameters(self.shape, self.config),
            "device": asdict(self.device),
            "devices": self.devices,
            "memory": memory,
            "lengths": asdict(self.lengths),
            "work": asdict(self.work),
            "seconds": asdict(self.seconds) | {"step": self.seconds.step},
            "hours": self.hours,
            "cost": self.cost,
        }


def make_plan(
    config: Config, device: Device, devices: int = 1, *, price: float | None = None, mean_tokens: float | None = None
) -> Plan:  # fmt: skip
    """Plan a run. mean_tokens: of a completion. Raises ModelError."""
    shape = read_shape(config.model)
    splits = devices > 1 and config.adapter.quantize is None  # a base in 4 bits is not split
    wanted: tuple[Strategy, ...] = ("ddp", "fsdp", "zero1", "zero2", "zero3")
    strategies = [one for one in wanted if one == "ddp" or (splits and one in ("fsdp", config.parallel.sharding))]
    units = device.bfloat16 is not None
    memory = {
        one: estimate_memory(
            shape, config, devices=devices, strategy=one, gpu=device.gpu, units=units, device_memory=device.memory
        )
        for one in strategies
    }
    lengths = assume_lengths(config, rollout=mean_tokens)
    work = count_work(shape, config, lengths)
    seconds = time_step(shape, config, lengths, work, device, devices)
    return Plan(config, shape, device, devices, memory, lengths, work, seconds, price)
