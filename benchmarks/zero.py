"""DeepSpeed's ZeRO by accelerate on a CPU: do two processes take the steps that one takes?

    pip install deepspeed
    DS_ACCELERATOR=cpu python benchmarks/zero.py

Not a part of the library; docs/processes.md says why. Supervised steps on traces of uneven lengths, two micro-batches
a process, so that both published defects of SFT baselines (arXiv 2604.23747) would show: an offloaded optimizer that
used the first micro-batch alone, and means of means. Compared with the mean over all tokens at once, in one process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

import torch
from processes import STEPS, build_groups, build_model

PROCESSES, MICRO_BATCHES, RATE, MOST = 2, 2, 1e-3, 1.0
CASES = {
    "stage 1": (1, "none"),
    "stage 2": (2, "none"),
    "stage 2, optimizer offloaded": (2, "cpu"),
    "stage 3": (3, "none"),
}


def traces() -> list[list[int]]:
    """Four rows of uneven lengths, one for each micro-batch of each process."""
    rows = [[*one.prompt_ids, *one.completion_ids] for group in build_groups() for one in group.rollouts]
    return rows[: PROCESSES * MICRO_BATCHES]


def summed_loss(model: Any, row: list[int]) -> torch.Tensor:
    """The negative log-likelihood of a row, summed over its tokens."""
    tokens = torch.tensor([row])
    logprobs = model(input_ids=tokens).logits[:, :-1].log_softmax(-1)
    loss: torch.Tensor = -logprobs.gather(-1, tokens[:, 1:, None]).sum()
    return loss


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """The optimizer, the same on both sides."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)


def train_alone(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """The weights after some steps on the mean over all tokens of all rows."""
    model = build_model("float32")
    optimizer = optimizer_of(model)
    count = sum(len(row) - 1 for row in rows)
    for _ in range(STEPS):
        torch.stack([summed_loss(model, row) / count for row in rows]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MOST)
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


def train_in_processes(stage: int, offload: str) -> dict[str, torch.Tensor]:
    """The same as one of several processes, by accelerate with DeepSpeed."""
    import deepspeed
    from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first, for minutes
    plugin = DeepSpeedPlugin(
        zero_stage=stage,
        gradient_accumulation_steps=MICRO_BATCHES,
        gradient_clipping=MOST,
        offload_optimizer_device=offload,
        zero3_save_16bit_model=True,  # by this setting it gathers weights in whatever type
    )
    plugin.deepspeed_config |= {"train_micro_batch_size_per_gpu": 1, "zero_force_ds_cpu_optimizer": False}
    # without the backend each process would train for itself: accelerate looks for one of a GPU, and finds none
    accelerator = Accelerator(
        deepspeed_plugin=plugin,
        gradient_accumulation_steps=MICRO_BATCHES,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
    )
    assert accelerator.num_processes == PROCESSES
    model: Any = build_model("float32")
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    rows = traces()
    mine = rows[accelerator.process_index :: PROCESSES]
    count = sum(len(row) - 1 for row in rows)
    for _ in range(STEPS):
        for row in mine:
            with accelerator.accumulate(model):
                loss = summed_loss(model, row) / count * PROCESSES * MICRO_BATCHES  # it takes means over both
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    found: dict[str, torch.Tensor] = accelerator.get_state_dict(model)
    return found


def work(case: str) -> None:
    """One of the processes; the first one says how far its weights are from those of one process."""
    torch.set_num_threads(1)
    ours = train_in_processes(*CASES[case])
    if int(os.environ["RANK"]) == 0:
        alone = train_alone(traces())
        print(f"{case:32} {max(float((ours[name] - alone[name]).abs().max()) for name in alone):.1e}", flush=True)


def main() -> None:
    """Start the processes of each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    for case in given.cases:
        command = [sys.executable, *launch, __file__, "--work", case]
        done = subprocess.run(
            command, text=True, capture_output=True, env=os.environ | {"ACCELERATE_USE_DEEPSPEED": "true"}
        )
        said = [line for line in done.stdout.splitlines() if line.startswith(case)]
        print(said[-1] if said else f"{case:32} fails:\n{done.stderr[-1500:]}", flush=True)


if __name__ == "__main__":
    main()
