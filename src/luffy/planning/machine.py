"""What this machine is, as far as its system says it: no torch."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 2**30


def multiplies_bfloat16() -> bool:
    """Whether the processor has units for products of bfloat16 matrices (AMX)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has under `taskset`, Slurm or a container's set."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[float, float] | None:
    """(total, free) in GiB, the smaller of the machine's and of the container's; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 / GIB for line in lines if line.endswith("kB")}
        total, free = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text()) / GIB
        used = int(Path("/sys/fs/cgroup/memory.current").read_text()) / GIB
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return total, free
    return min(total, limit), min(free, max(0.0, limit - used))
