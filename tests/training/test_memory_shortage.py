"""Memory that runs out is said with the setting that helps; for real, in a process whose memory is limited."""

import subprocess
import sys

import pytest
import torch

from luffy import load_config
from luffy.errors import ModelError, RunError
from luffy.planning.devices import Device
from luffy.planning.shortage import explain_shortage, shortage_explained

LARGE = {"model": "Qwen/Qwen2.5-Math-1.5B", "policy.autocast": "none", "policy.token_budget": 4096}

LIMITED_RUN = """
import resource, sys
from pathlib import Path
import torch
from luffy import load_config, train
import luffy.policy.load, luffy.training.learner, transformers.models.llama.modeling_llama
from luffy.errors import RunError

budget, room = int(sys.argv[2]), int(sys.argv[3])
config = load_config("recipes/miniature.yaml", {
    "output": sys.argv[1], "steps": 1, "problems_per_step": 128, "rollouts_every": 0, "policy.token_budget": budget,
    "evaluation.watch": [], "evaluation.benchmarks": [], "rollout.max_tokens": 40, "method": "on_policy",
    "objective.entropy_coefficient": 0.01,  # every row is computed
})

def limit(step, steps, metrics):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
    torch.zeros(1)

limit(0, 0, {})
try:
    train(config)
except RunError as error:
    print(error)
    sys.exit(3)
"""


def limited_run(folder, budget: int, room: int):
    command = [sys.executable, "-c", LIMITED_RUN, str(folder), str(budget), str(room)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a limit on memory")
def test_a_run_that_has_too_little_memory_names_the_setting_that_helps(tmp_path):
    done = limited_run(tmp_path / "run", budget=2**20, room=250 * 2**20)
    assert done.returncode == 3, done.stdout[-2000:] + done.stderr[-2000:]
    assert "memory ran out (can't allocate memory: you tried to allocate" in done.stdout
    assert "By the plan it takes up to" in done.stdout
    assert "It fits with policy.gradient_checkpointing=true policy.token_budget=" in done.stdout
    assert (tmp_path / "run" / "summary.json").is_file()  # and the run's folder says that it failed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("std::bad_alloc"),
        ModelError("a/model: cannot be loaded as a causal language model. CUDA out of memory."),
        MemoryError(),
    ],
)
def test_every_way_of_saying_so_is_understood(error):
    config = load_config(None, {"model": "Qwen/Qwen2.5-Math-7B", "policy.token_budget": 8192})
    with pytest.raises(RunError, match=r"memory ran out .*By the plan"), shortage_explained(config):
        raise error


@pytest.fixture
def machine(monkeypatch):
    """Says how much memory this machine has."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def has(gigabytes):
        device = Device("a machine", gigabytes * 1e9, flops=1e12, bandwidth=1e11)
        monkeypatch.setattr("luffy.planning.shortage.this_machine", lambda: device)

    return has


def test_of_several_processes_each_has_its_share_of_the_machine_and_of_the_model(machine):
    machine(100)
    copies, alone, parts = (
        explain_shortage(load_config(None, LARGE | more), "MemoryError", processes)
        for processes, more in [(4, {}), (1, {}), (4, {"parallel.sharding": "full"})]
    )
    assert "there are 100 GB" in alone
    assert "there are 25 GB" in copies
    needed = [float(text.partition("takes up to ")[2].partition(" GB")[0]) for text in (copies, alone, parts)]
    assert needed[0] > needed[1] > needed[2]  # DDP's buckets; neither buckets nor parts; parts


def test_a_run_that_fits_in_parts_alone_is_told_so(machine):
    machine(200)
    assert "It fits with parallel.sharding=full" in explain_shortage(load_config(None, LARGE), "MemoryError", 4)
    in_parts = load_config(None, LARGE | {"parallel.sharding": "full"})
    assert "other programs, or a limit, take the rest" in explain_shortage(in_parts, "MemoryError", 4)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), shortage_explained(load_config(None)):
        raise RuntimeError("shapes differ")
