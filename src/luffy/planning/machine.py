"""How much memory this machine has."""

from __future__ import annotations

from pathlib import Path

GIB = 2**30


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
