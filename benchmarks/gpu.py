"""Speed and memory on one GPU, in one command of under ten minutes. **Not yet run on a GPU**, tested on a CPU only.

    python benchmarks/gpu.py            # needs a CUDA device
    python benchmarks/gpu.py --tiny     # the same code on a CPU with tiny shapes: a test, not a measurement

Random-weight models of the shapes of Qwen2-0.5B and Qwen2-1.5B (vocabulary 151,936; as Llamas, so without the biases of
their projections), bfloat16, a trace of 4,000 tokens beside seven rollouts of 128 to 512. For each: our whole step, its
generation, its update and peak memory against TRL's `GRPOTrainer` on the same work (`contestant.py`), one after the
other, as both at once might not fit; generation by vLLM where that is installed; and model FLOPs utilisation: 6 x
parameters x trained tokens, over the time of the update, over the rate at which the device multiplies large bfloat16
matrices (measured here). Writes benchmarks/results/gpu.json. A part that fails (out of memory, TRL or vLLM not
installed) says so in its row, and the rest goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from duel import SIDES, ContestantError, Steps, alone, column, has_trl
from measuring import report, show, spread
from workload import FIRST_WORD, SHAPES, Work, save_model

LENGTHS = (128, 192, 256, 320, 384, 448, 512)
TRACE, PROMPT, GROUPS = 4000, 128, 4
STEPS = 3


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    works: tuple[Work, ...]
    matrix: int  # rows and columns of the matrices whose product is timed
    steps: int


def full_scale() -> Scale:
    """For a GPU."""
    shapes = ("0.5B", "1.5B")
    works = [
        Work(
            shape, GROUPS, LENGTHS, TRACE, PROMPT, token_budget=16384, rows=4, dtype="bfloat16", device="cuda",
            gradient_checkpointing=shape == "1.5B",
        )
        for shape in shapes
    ]  # fmt: skip
    return Scale(tuple(works), matrix=8192, steps=STEPS)


def tiny_scale() -> Scale:
    """For a test of this file."""
    work = Work("tiny", groups=1, lengths=(4, 5, 6), trace=24, prompt=4, rows=4, dtype="bfloat16")
    return Scale((work,), matrix=64, steps=1)


def matmul_rate(size: int, device: str) -> float:
    """Operations a second of a large bfloat16 product."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(6):
        synchronise(device)
        started = time.perf_counter()
        left @ right
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2.0 * size**3 / spread(times[1:])["median"]


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def attempt(what: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an action measured, or why it could not."""
    blank = {"what": what, "step, s": "-", "generate, s": "-", "update, s": "-", "generated a s": "-"}
    blank |= {"trained a s": "-", "utilisation": "-", "peak, GB": "-", "note": ""}
    try:
        return blank | action()
    except ContestantError as error:
        return blank | {"note": str(error)}
    except subprocess.CalledProcessError as error:
        return blank | {"note": f"failed: {(error.stderr or '').strip().splitlines()[-1:]}"}


def run_side(side: str, work: Work, steps: int, rate: float) -> dict[str, Any]:
    """Steps of ours or of TRL."""
    if side == "trl" and not has_trl():
        return {"note": "TRL is not installed"}
    return describe(work, alone(side, work, steps), rate)


def describe(work: Work, steps: Steps, rate: float) -> dict[str, Any]:
    """Medians of a trainer's steps."""
    step, generate, update = (spread(column(steps, name))["median"] for name in ("step", "generate", "update"))
    generated = work.groups * sum(work.lengths)
    return {
        "step, s": step,
        "generate, s": generate,
        "update, s": update,
        "generated a s": generated / generate,
        "trained a s": work.trained_tokens / update,
        "utilisation": 6.0 * SHAPES[work.shape].parameters * work.trained_tokens / update / rate,
        "peak, GB": max(column(steps, "peak")) / 1e9,
    }


def run_vllm(work: Work) -> dict[str, Any]:
    """Generation of the same completions by vLLM, in a process of its own."""
    if find_spec("vllm") is None:
        return {"note": "vLLM is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        save_model(SHAPES[work.shape], Path(folder), getattr(torch, work.dtype))
        command = [sys.executable, __file__, "--vllm", folder, "--lengths", ",".join(map(str, work.lengths))]
        done = subprocess.run(
            [*command, "--groups", str(work.groups), "--prompt", str(work.prompt)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    seconds = float(done.stdout.strip().splitlines()[-1])
    return {"generate, s": seconds, "generated a s": work.groups * sum(work.lengths) / seconds}


def time_vllm(folder: str, lengths: list[int], groups: int, prompt: int) -> None:
    """Print the median seconds that vLLM takes for the completions of a step."""
    from vllm import LLM, SamplingParams

    engine = LLM(model=folder, dtype="bfloat16", gpu_memory_utilization=0.6)
    prompts = [{"prompt_token_ids": [FIRST_WORD + group] * prompt} for group in range(groups) for _ in lengths]
    sampling = [SamplingParams(max_tokens=length, ignore_eos=True, logprobs=0) for length in lengths] * groups
    times = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        engine.generate(prompts, sampling, use_tqdm=False)
        times.append(time.perf_counter() - started)
    print(spread(times[1:])["median"])


def main() -> int:
    """Measure; 2 where there is no device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU: tests this file, measures nothing")
    for name in ("--vllm", "--lengths", "--groups", "--prompt"):  # for the process that run_vllm starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.vllm:
        lengths = [int(length) for length in arguments.lengths.split(",")]
        time_vllm(arguments.vllm, lengths, int(arguments.groups), int(arguments.prompt))
        return 0
    if not arguments.tiny and not torch.cuda.is_available():
        print("There is no CUDA device here. `--tiny` tests this file on a CPU.", file=sys.stderr)
        return 2
    scale = tiny_scale() if arguments.tiny else full_scale()
    device = scale.works[0].device
    rate = matmul_rate(scale.matrix, device)
    rows = []
    for work in scale.works:
        rows += [attempt(f"{work.shape}, {side}", partial(run_side, side, work, scale.steps, rate)) for side in SIDES]
        rows.append(attempt(f"{work.shape}, vllm", partial(run_vllm, work)))
    if arguments.tiny:
        show("a test, no measurement", rows)
    else:
        report("gpu", rows, device=torch.cuda.get_device_name(), matmul_rate=rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
