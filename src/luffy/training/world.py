"""The processes that train together, as one of them sees it.

Whoever started them (`luffy train --processes`, `accelerate launch`, torchrun) says by environment variables how many
there are; accelerate opens the connection. Objects travel over gloo, whatever the device: a batch may be collected in a
thread while the gradients are summed up, so collecting has a group of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from luffy.config import Config
from luffy.errors import ConfigError, LuffyError, RunError, first_line

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class LostProcessError(RunError):
    """Another process is gone, or does not answer within the time-out."""


def started_processes() -> int | None:
    """How many processes whoever started this one says there are; None: it was started alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else None


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and how they talk. Alone, nothing is sent."""

    rank: int = 0
    size: int = 1
    timeout: float = 0.0  # seconds that a process waits for the others
    group: Any = None  # of processes, through which objects are sent

    @classmethod
    def open(cls, config: Config) -> Self:
        """Connect with the other processes, if there are any.

        Raises ConfigError where they are not as many as the configuration says, or more than a step has problems.
        """
        started = started_processes()
        _check(started or 1, config)
        if started is None or started == 1:
            return cls()
        from accelerate import PartialState

        timeout = timedelta(seconds=config.parallel.timeout)
        on_cpu = config.policy.device == "cpu" or not torch.cuda.is_available()
        try:
            if not dist.is_initialized():
                if config.parallel.offload and not on_cpu:  # what lies on the host is summed up there, too
                    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout)
                PartialState(cpu=on_cpu, timeout=timeout)
            group = dist.new_group(backend="gloo", timeout=timeout)
        except RuntimeError as error:
            raise LostProcessError(
                f"the {started} processes did not find each other: {first_line(error, 200)}"
            ) from None
        return cls(dist.get_rank(), dist.get_world_size(), config.parallel.timeout, group)

    def apart(self) -> Self:
        """The same processes over a connection of its own, for a thread that works beside this one."""
        return replace(self, group=dist.new_group(backend="gloo", timeout=self._timeout)) if self.size > 1 else self

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The places, of `count` in a row, that are this process's: a contiguous part."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, mine: Value) -> list[Value]:
        """What each process hands in, in their order, on all of them."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        with self.lost_are_named():
            dist.all_gather_object(found, mine, group=self.group)
        return found

    def together(self, work: Callable[[], Value]) -> list[Value]:
        """Do work on each process, and gather what comes of it; a LuffyError of one of them is raised on all."""
        if self.size == 1:
            return [work()]
        results = self.gather(_outcome(work))
        return [_value(result) for result in results]

    def from_main(self, work: Callable[[], Value]) -> Value:
        """Let the main process do work, and have what comes of it on all; a LuffyError, too."""
        if self.size == 1:
            return work()
        carried: list[Any] = [_outcome(work) if self.main else None]
        with self.lost_are_named():
            dist.broadcast_object_list(carried, src=0, group=self.group)
        value: Value = _value(carried[0])
        return value

    def tensors_from_main(self, work: Callable[[], Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same for tensors by name, on the CPU; one after the other, so that no other process holds them all."""
        if self.size == 1:
            yield from work().items()
            return
        given: Mapping[str, Tensor] = {}

        def describe() -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
            nonlocal given
            given = work()
            return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in given.items()}

        for name, (shape, dtype) in self.from_main(describe).items():
            tensor = given[name].detach().cpu().contiguous() if self.main else torch.empty(shape, dtype=dtype)
            with self.lost_are_named():
                dist.broadcast(tensor, src=0, group=self.group)
            yield name, tensor

    def sums(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes, in their order: the same number on each."""
        gathered = self.gather(dict(totals))
        names = dict.fromkeys(name for one in gathered for name in one)
        return {name: sum(one.get(name, 0.0) for one in gathered) for name in names}

    @contextmanager
    def turn(self, what: str) -> Iterator[bool]:
        """Whether no other process is inside such a turn meanwhile; asked without waiting, by any of them at any time.

        Raises LostProcessError where the machine that keeps count is gone.
        """
        if self.size == 1:
            yield True
            return
        key, mine = f"luffy/turn/{what}/{_attempt()}", str(self.rank)
        with self.lost_are_named():
            store = _store()
            ours = store.compare_set(key, "", mine).decode() == mine
        try:
            yield ours
        finally:
            if ours:
                with self.lost_are_named():
                    store.compare_set(key, mine, "")

    @contextmanager
    def lost_are_named(self) -> Iterator[None]:
        """Turn what the libraries raise when a connection ends into a LostProcessError."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_of_connection(error):
                raise
            logger.debug("a connection ended: %s", error)
            late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
            what = f"did not answer within parallel.timeout={self.timeout:g} seconds" if late else "has ended"
            raise LostProcessError(f"another of the {self.size} processes {what}.") from None

    @property
    def _timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout)


ALONE = World()


def first_to_fail() -> bool:
    """Whether this is the first process of those that train together to say that it fails; the others keep silent."""
    if (started_processes() or 1) == 1:
        return True
    try:
        return bool(_store().add(f"luffy/failed/{_attempt()}", 1) == 1)
    except (RuntimeError, KeyError):  # the machine that keeps count is gone, too: each machine speaks once
        return os.environ.get("LOCAL_RANK") == "0"


def _store() -> Any:
    """Where the processes leave word for each other without meeting."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
    )


def _attempt() -> str:
    """Which start of the processes this is: word of an earlier one is still there."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}"


def disconnect() -> None:
    """Take leave of the other processes, as the libraries ask for at the end of each."""
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _check(started: int, config: Config) -> None:
    if config.processes is not None and config.processes != started:
        raise ConfigError(
            f"processes={config.processes}, but {started} {'was' if started == 1 else 'were'} started. Start with "
            f"`luffy train RECIPE --processes {config.processes}`, or leave processes= out where `accelerate launch` "
            "or torchrun says how many there are."
        )
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", started))
    if config.rollout.engine == "vllm_server" and not config.rollout.vllm.server and on_this_machine < started:
        raise ConfigError(
            "rollout.engine=vllm_server would start a server that no other machine reaches: start one by hand that all "
            "machines reach, and give its address as rollout.vllm.server (docs/engines.md)."
        )
    if started > config.problems_per_step:
        raise ConfigError(
            f"{started} processes are more than the problems of a step (problems_per_step={config.problems_per_step}), "
            "so some would never generate. Use fewer processes or more problems a step."
        )


def _outcome(work: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, work()
    except LuffyError as error:
        return False, error


def _value(outcome: tuple[bool, Any]) -> Any:
    succeeded, result = outcome
    if not succeeded:
        raise result
    return result


def _is_of_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def in_order(parts: Sequence[Sequence[Value]]) -> list[Value]:
    """The parts of all processes as one list."""
    return [one for part in parts for one in part]
