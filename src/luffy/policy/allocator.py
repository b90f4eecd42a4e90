"""Memory that is freed on a CPU stays with the process, so that the next update need not fetch it page by page."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's mallopt
KEPT = 2**30  # bytes; smaller pieces come from the heap, which is not given back
KEPT_BY_OLD = 2**25  # the most that earlier versions of glibc take
SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Tell the C library not to give large pieces back to the system; False where it is not asked, or does not listen.

    glibc maps a piece of more than 32 MB anew each time, and the kernel clears it page by page: a quarter of an
    update of a 135M model under bfloat16 autocast. What the process holds at most stays about the same. Whoever has
    set the allocator by the environment keeps that.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SET_BY_USER):
        return False
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = tune(M_MMAP_THRESHOLD, KEPT) or tune(M_MMAP_THRESHOLD, KEPT_BY_OLD)
    return bool(mapped and tune(M_TRIM_THRESHOLD, 2**31 - 1))
