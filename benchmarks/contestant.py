"""One trainer in a process of its own, a step at a time: `python benchmarks/contestant.py ours|trl WORK_AS_JSON`.

Reads a line from standard input before each step and writes a line of JSON after it: the seconds of the whole step,
of its parts, and how many tokens were generated. `duel.py` lets two of them take turns.

Ours is `luffy.train`, method `luffy` or, without a trace, `on_policy`. TRL is its `GRPOTrainer`, plain GRPO; the trace
is handed over by its own hook, `rollout_func`: seven of eight completions come from TRL's own generation, the eighth
is the trace. Both: AdamW fused, gradients clipped, constant divisor of the loss, no KL, no entropy bonus, no
evaluation, no checkpoint, the same reward function, ours in a verifier process. TRL's settings are the fastest found on
a CPU (docs/performance.md): no gradient checkpointing, no logging, `generate` with the growing cache, micro-batches of
`Work.rows`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENDLESS = 10_000  # steps


class Turns:
    """Waits for a turn, says what it took."""

    def __init__(self) -> None:
        """Keeps standard output for itself: libraries that print are sent to standard error."""
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._started = 0.0

    def wait(self) -> None:
        """Until a line is read; ends the process where there is none."""
        if not sys.stdin.readline():
            os._exit(0)
        self._started = time.perf_counter()

    def report(self, **measured: Any) -> None:
        """A step is over."""
        synchronise()
        seconds = time.perf_counter() - self._started
        print(json.dumps({"step": seconds, "peak": peak_memory()} | measured), file=self._out, flush=True)


def synchronise() -> None:
    """Let the GPU, if one is used, finish what it was given."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """The most bytes so far: of the GPU where one is used, else of this process."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_ours(work: Any, folder: Path, turns: Turns) -> None:
    """Train with luffy until there are no more turns."""
    from workload import Lengths, draw_problems, reward

    from luffy import load_config, train

    overrides = work.recipe(folder) | {"steps": ENDLESS}
    generated = 0

    def after_step(_step: int, _steps: int, metrics: dict[str, Any]) -> None:
        nonlocal generated
        parts = {name: metrics.get(f"time/{name}", 0.0) for name in ("generate", "verify", "update", "synchronise")}
        turns.report(**parts, tokens=metrics["tokens/generated"] - generated)
        generated = metrics["tokens/generated"]
        turns.wait()

    turns.wait()
    with Lengths(work.lengths, work.prompt).at_decoders():
        train(load_config(None, overrides), problems=draw_problems(work), reward=reward, on_step=after_step)


class Stopwatch:
    """Adds up the seconds that wrapped calls take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Count the time in `owner.method` as `part`."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*positional: Any, **named: Any) -> Any:
            synchronise()
            started = time.perf_counter()
            try:
                return inner(*positional, **named)
            finally:
                synchronise()
                self.seconds[part] += time.perf_counter() - started

        setattr(owner, method, timed)


def run_trl(work: Any, folder: Path, turns: Turns) -> None:
    """Train with TRL until there are no more turns."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from workload import END, Lengths, draw_problems, reward

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, work.dtype)).to(work.device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    Lengths(work.lengths, work.prompt).attach(model)
    problems = draw_problems(work)
    traces = {str(one.prompt): [*tokenizer(one.traces[0].text)["input_ids"], END] for one in problems if one.traces}
    generated: list[int] = [0]
    size = work.group_size

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's own generation for all members of a group but the last, which is the trace."""
        prompt_ids = trainer.processing_class(prompts)["input_ids"]
        own = [index for index in range(len(prompts)) if index % size < size - 1]
        drawn, _ = trainer._generate_single_turn([prompt_ids[index] for index in own], None, {}, size)
        completions = dict(zip(own, drawn, strict=True))
        ids = [completions[index] if index in completions else traces[text] for index, text in enumerate(prompts)]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None}

    settings = {
        "output_dir": str(folder / "trl"),
        "max_steps": ENDLESS,
        "per_device_train_batch_size": work.rows,
        "gradient_accumulation_steps": work.groups * size // work.rows,
        "num_generations": size,
        "max_completion_length": work.longest,
        "use_cpu": work.device == "cpu",
        "bf16": "bfloat16" in (work.dtype, work.autocast),
        "gradient_checkpointing": work.gradient_checkpointing,
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "beta": 0.0,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    watch = Stopwatch()

    class Turn(TrainerCallback):  # type: ignore[misc]
        """A step is a turn."""

        def on_train_begin(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
            watch.wrap(optimizer, "step", "optimizer")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = watch.seconds
            update = seconds["training_step"] - seconds["prepare"] + seconds["clip"] + seconds["optimizer"]
            parts = {"generate": seconds["generate"], "verify": seconds["verify"], "update": update}
            turns.report(**parts, tokens=generated[0])
            seconds.clear()
            generated[0] = 0
            turns.wait()

    def rewards(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        own = [ids for index, ids in enumerate(completion_ids) if not traces or index % size < size - 1]
        generated[0] += sum(map(len, own))
        return [reward(text) for text in completions]

    rows = [{"prompt": str(one.prompt)} for one in problems]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=GRPOConfig(**(settings | work.trl)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Turn()],
        rollout_func=roll_out if traces else None,
    )
    for method, part in {
        "training_step": "training_step",
        "_prepare_inputs": "prepare",
        "_generate_single_turn": "generate",
        "_calculate_rewards": "verify",
    }.items():
        watch.wrap(trainer, method, part)
    watch.wrap(trainer.accelerator, "clip_grad_norm_", "clip")
    turns.wait()
    trainer.train()


def main() -> None:
    """Be one side of a duel."""
    turns = Turns()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from workload import SHAPES, Work, save_model

    side, text = sys.argv[1:]
    work = Work(**json.loads(text))
    with tempfile.TemporaryDirectory() as folder:
        save_model(SHAPES[work.shape], Path(folder), getattr(torch, work.dtype))
        {"ours": run_ours, "trl": run_trl}[side](work, Path(folder), turns)


if __name__ == "__main__":
    main()
