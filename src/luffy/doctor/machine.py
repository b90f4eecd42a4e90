"""The computer: Python, system, processor, memory, disk, devices."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from luffy.doctor.findings import Finding
from luffy.planning.machine import GIB, memory, usable_cores

OLDEST_PYTHON = (3, 11)
LEAST_MEMORY, LEAST_DISK = 1.0, 1.0  # GiB: what a run of the miniature takes, with room for its results
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}


def find_machine() -> Iterator[Finding]:
    """What needs no library to be looked at."""
    old = sys.version_info[:2] < OLDEST_PYTHON
    needed = ".".join(map(str, OLDEST_PYTHON))
    yield Finding(
        "machine",
        "Python",
        platform.python_version(),
        "missing" if old else "fine",
        f"Python {needed} or newer is needed" if old else "",
    )
    yield Finding("machine", "system", f"{platform.system()} {platform.release()} on {platform.machine()}")
    yield Finding("machine", "processor", f"{_processor()}, {usable_cores()} of {os.cpu_count()} cores usable")
    yield _bfloat16()
    yield _memory()
    yield _disk(Path.cwd(), "disk, here", "another output=")
    yield _disk(Path(tempfile.gettempdir()), "disk, temporary", "another TMPDIR")


def find_devices() -> Iterator[Finding]:
    """What torch computes on."""
    import torch

    if not torch.cuda.is_available():
        why = "torch is a build for the processor" if torch.version.cuda is None else "no driver or no GPU was found"
        yield Finding("devices", "GPU", f"none ({why})", "optional", "needed for models of more than some 100 million")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        bfloat16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        memory = f"{about.total_memory / GIB:.0f} GiB"
        yield Finding("devices", f"GPU {number}", f"{about.name}, {memory}, {bfloat16}, CUDA {torch.version.cuda}")


def _memory() -> Finding:
    sizes = memory()
    if sizes is None:
        return Finding("machine", "memory", "unknown on this system")
    total, free = sizes
    short = free < LEAST_MEMORY
    return Finding(
        "machine",
        "memory",
        f"{total:.1f} GiB, {free:.1f} free",
        "missing" if short else "fine",
        f"the miniature needs {LEAST_MEMORY:.0f} GiB: end other programs" if short else "",
    )


def _disk(folder: Path, name: str, other: str) -> Finding:
    free = shutil.disk_usage(folder).free / GIB
    if not os.access(folder, os.W_OK):
        return Finding("machine", name, "cannot be written", "missing", f"choose {other}")
    short = free < LEAST_DISK
    remedy = f"runs need {LEAST_DISK:.0f} GiB and more: make room, or choose {other}" if short else ""
    return Finding("machine", name, f"{free:.1f} GiB free", "missing" if short else "fine", remedy)


def _bfloat16() -> Finding:
    flags = _processor_lines().get("flags", "").split() + _processor_lines().get("Features", "").split()
    has = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    fast = "amx_bf16" in flags
    return Finding(
        "machine",
        "instructions",
        ", ".join(has) or "none of AVX2, AVX-512, AMX",
        remedy="bfloat16 products are fast" if fast else "no AMX: products stay float32 (policy.autocast=auto)",
    )


def _processor() -> str:
    return _processor_lines().get("model name") or platform.processor() or platform.machine()


def _processor_lines() -> dict[str, str]:
    """What Linux says of the first processor."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
