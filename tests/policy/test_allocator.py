"""What the process holds after freeing, in a process of its own: the setting is for the whole of it."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from luffy.policy.allocator import keep_freed_memory
said = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**25).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(said, min(faults() for _ in range(6)))
"""


def run(what, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_what_is_freed_is_used_again_without_asking_the_system():
    assert run("leave")[1] > 1000  # 128 MB in pages of 4 KB, or of 64 KB
    said, faults = run("keep")
    assert said == "True"
    assert faults < 100


def test_an_allocator_set_by_the_environment_is_left_alone():
    assert run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
