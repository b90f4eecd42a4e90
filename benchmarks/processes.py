"""Methods x processes x wrappers: the same weights after three steps as one process?

    python benchmarks/processes.py            # prints the table, writes benchmarks/results/processes.json
    python benchmarks/processes.py --go-on    # after an interruption

Wrappers: ddp (each process holds all weights), fsdp2 (weights, gradients and moments are split), fsdp2 that is saved
after every step, each process its part, and taken up by a learner with another model, and fsdp2 with its parts on the
host. Where deepspeed is installed (`make test-deepspeed`), also the stages of its ZeRO, which know no float64.

A tiny random model with exact norms takes three optimizer steps on the same uneven groups: some without trace, one
without signal, micro-batches of few tokens. All processes but the first begin with other weights, which must not count.
What is compared are all weights, in float64 (to 1e-9) and float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "processes.json"
PAGE = Path(__file__).parents[1] / "docs" / "processes.md"
STEPS = 3
TOLERANCE = {"float64": 1e-9, "float32": 2e-4}  # of the largest difference of a weight; AdamW divides by tiny numbers
VOCABULARY = 40
SEPARATOR = "|"  # between the names of a case in a file
SETTINGS: dict[str, Any] = {
    "rollout.max_tokens": 40,
    "optimizer.learning_rate": 1e-3,
    "sft.learning_rate": 1e-3,
    "sft.schedule": "constant",
    "policy.token_budget": 30,  # so that a process has several micro-batches
}
VARIANTS: dict[str, dict[str, Any]] = {  # beside the methods: what else goes through the wrappers
    "luffy, 2 updates, capped": {"method": "luffy", "updates_per_step": 2, "objective.importance_cap": 1.5},
    "luffy, entropy and KL": {
        "method": "luffy",
        "objective.entropy_coefficient": 0.1,
        "objective.kl_coefficient": 0.1,
    },
    "luffy, recomputed activations": {"method": "luffy", "policy.gradient_checkpointing": True},
    "luffy, adapter": {"method": "luffy", "adapter.rank": 4},
    "luffy, adapter, KL, recomputed": {
        "method": "luffy",
        "adapter.rank": 4,
        "objective.kl_coefficient": 0.1,
        "policy.gradient_checkpointing": True,
    },
}


WRAPPERS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"parallel.sharding": "full"},
    "fsdp2, taken up": {"parallel.sharding": "full", "parallel.checkpoint": "sharded"},
    "fsdp2, offloaded": {"parallel.sharding": "full", "parallel.offload": True},
    "zero1": {"parallel.sharding": "zero1"},
    "zero2": {"parallel.sharding": "zero2"},
    "zero2, offloaded": {"parallel.sharding": "zero2", "parallel.offload": True},
    "zero3": {"parallel.sharding": "zero3"},
    "zero3, offloaded": {"parallel.sharding": "zero3", "parallel.offload": True},
    "fsdp2 in bfloat16": {"parallel.sharding": "full", "parallel.param_dtype": "bfloat16"},
}
ZERO = ("zero1", "zero2", "zero2, offloaded", "zero3", "zero3, offloaded")  # in float32 alone, where deepspeed is there
EXACT = ("ddp", "fsdp2", "fsdp2, taken up", "fsdp2, offloaded")


def cases() -> dict[str, dict[str, Any]]:
    """Every method, and the variants."""
    from luffy.algorithm import METHODS

    return {name: {"method": name} for name in METHODS} | VARIANTS


# -- what is trained


def build_groups() -> list[Any]:
    """Four groups of uneven lengths: two with a trace, one without signal, one without trace."""
    import torch

    from luffy.types import Group, Problem, Rollout

    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return [int(token) for token in torch.randint(1, VOCABULARY, (length,), generator=generator)]

    groups = []
    for number, (rewards, traced) in enumerate(
        [((1, 0, 0, 1), True), ((0, 0, 0, 1), True), ((1, 1, 1, 1), True), ((0, 1, 0), False)]
    ):
        prompt, rollouts = draw(3 + number), []
        for place, reward in enumerate(rewards):
            off_policy = traced and place == len(rewards) - 1
            length = 29 - 9 * number if off_policy else 3 + 4 * place
            logprobs = [0.0] * length if off_policy else (-torch.rand(length, generator=generator)).tolist()
            rollouts.append(Rollout(prompt, draw(length), logprobs, off_policy, True, float(reward), ""))
        groups.append(Group(Problem(str(number), "p", "a"), rollouts))
    return groups


def build_model(dtype: str) -> Any:
    """A random Llama whose norms compute in its own precision, and not in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from workload import norm_in_its_own_precision

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape, **heads)).to(getattr(torch, dtype)).eval()
    return norm_in_its_own_precision(model)


def train(settings: dict[str, Any], dtype: str, world: Any = None) -> dict[str, Any]:
    """The weights after three steps, empty in a process that does not write, and the metrics of each step."""
    from luffy import load_config
    from luffy.algorithm import METHODS
    from luffy.training.groups import assign_advantages
    from luffy.training.world import ALONE

    config = load_config(overrides=SETTINGS | settings)
    world = world or ALONE
    learner, loaded = make_learner(config, dtype, world)
    groups = build_groups()
    assign_advantages(groups, learner.method, config)
    traces = [rollout for group in groups for rollout in group.rollouts if rollout.off_policy]
    measured = []
    for phase in METHODS[config.method].phases:
        begin = 0 if phase == "sft" else STEPS
        learner.start_phase(phase, begin, STEPS)
        for step in range(STEPS):
            metrics = learner.imitate(traces, step) if phase == "sft" else learner.update(groups, step)
            measured.append({name: value for name, value in metrics.items() if not name.startswith("perf/")})
            if learner.wrapper.saves_parts:
                learner, loaded = take_up(learner, dtype, phase, begin)
    weights = {name: weight.detach().clone() for name, weight in learner.wrapper.whole_weights().items()}
    return {"weights": weights, "metrics": measured, "tokens": learner.tokens_trained, "held": share_held(loaded.model)}


def make_learner(config: Any, dtype: str, world: Any) -> tuple[Any, Any]:
    """A learner, and the model that it trains."""
    from luffy.policy import LoadedModel
    from luffy.policy.adapters import add_adapter
    from luffy.training.learner import Learner

    model: Any = build_model(dtype)
    if config.policy.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if config.adapter.rank is not None:
        add_adapter(model, config.adapter, seed=0)
    for weight in model.parameters():
        weight.data.add_(0.1 * world.rank)  # what the others begin with must not count
    tokenizer: Any = None
    loaded = LoadedModel(model, tokenizer, (2,), 0)
    return Learner(loaded, config, world), loaded


def take_up(learner: Any, dtype: str, phase: Any, begin: int) -> tuple[Any, Any]:
    """Save what is learned, each process its part, and load it into a learner that knows nothing."""
    from luffy.training import checkpoint

    world = learner.world
    folder = Path(world.from_main(tempfile.mkdtemp))
    checkpoint.save_in_parts(folder, learner, checkpoint.Progress(), checkpoint.Retention(1))
    saved = checkpoint.list_checkpoints(folder)[0]
    another, loaded = make_learner(learner.config, dtype, world)
    for weight in loaded.model.parameters():
        if weight.requires_grad:
            weight.data.zero_()  # all of it must come from the checkpoint
    checkpoint.load_weights(saved, loaded, world)
    another.start_phase(phase, begin, STEPS)
    checkpoint.load_optimizer(saved, another)
    another.tokens_trained = learner.tokens_trained
    world.gather(None)
    if world.main:
        shutil.rmtree(folder)
    return another, loaded


def share_held(model: Any) -> float:
    """The share of the weights that this process holds between steps."""
    from luffy.policy.sharding import whole_shape

    parameters = list(model.parameters())
    own = sum(getattr(one, "ds_tensor", getattr(one, "to_local", lambda one=one: one)()).numel() for one in parameters)
    return float(own / sum(whole_shape(one).numel() for one in parameters))


# -- processes


def work(names: Sequence[str], dtypes: Sequence[str], wrappers: Sequence[str], output: Path) -> None:
    """One of several processes: train all cases; the first one saves what came out."""
    import torch

    from luffy import load_config
    from luffy.training.world import World, disconnect

    torch.set_num_threads(1)
    world = World.open(load_config(overrides={"policy.device": "cpu", "parallel.timeout": 120}))
    known, found = cases(), {}
    for name, dtype, wrapper in itertools.product(names, dtypes, wrappers):
        outcome = train(known[name] | WRAPPERS[wrapper], dtype, world)
        sums = {key: weight.double().sum().item() for key, weight in outcome["weights"].items()}
        alike = [one for one in world.gather(sums) if one]
        found[name, dtype, wrapper] = outcome | {"alike": all(one == alike[0] for one in alike)}
    if world.main:
        save_found(output, found)
    world.gather(None)
    disconnect()


def save_found(path: Path, found: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> None:
    """What `train` found in each case: weights as tensors, the rest beside them."""
    from safetensors.torch import save_file

    rest = {SEPARATOR.join(case): {**outcome, "weights": list(outcome["weights"])} for case, outcome in found.items()}
    tensors = {
        SEPARATOR.join((*case, name)): weight
        for case, outcome in found.items()
        for name, weight in outcome["weights"].items()
    }
    save_file(tensors, path, metadata={"rest": json.dumps(rest)})


def load_found(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The inverse of `save_found`."""
    from safetensors import safe_open

    found = {}
    with safe_open(path, framework="pt") as file:
        for case, outcome in json.loads(file.metadata()["rest"]).items():
            name, dtype, wrapper = case.split(SEPARATOR)
            weights = {weight: file.get_tensor(SEPARATOR.join((case, weight))) for weight in outcome["weights"]}
            found[name, dtype, wrapper] = outcome | {"weights": weights}
    return found


def in_processes(
    count: int, names: Sequence[str], dtypes: Sequence[str], wrappers: Sequence[str]
) -> dict[tuple[str, str, str], Any]:
    """What `train` finds in that many connected processes, by case, dtype and wrapper.

    Raises RuntimeError with what they said if one fails.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        output = Path(folder) / "found.safetensors"
        command = [sys.executable, __file__, "--work", str(output), "--cases", *names, "--dtypes", *dtypes]
        command += ["--wrappers", *wrappers]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
        logs = [Path(folder) / f"{rank}.log" for rank in range(count)]  # a pipe that nobody empties stops who writes
        processes = [
            subprocess.Popen(
                command,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log.open("w"),
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            raise RuntimeError("\n".join(log.read_text() for log in logs))
        return load_found(output)


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Of any weight."""
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


@cache
def train_alone(name: str, dtype: str) -> dict[str, Any]:
    """What `train` finds in one process."""
    return train(cases()[name], dtype)


def compare(
    counts: Sequence[int], names: Sequence[str], dtypes: Sequence[str], wrappers: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each case: how far its weights are from those of one process."""
    rows = []
    for count in counts:
        for (name, dtype, wrapper), outcome in in_processes(count, names, dtypes, wrappers).items():
            difference = largest_difference(outcome["weights"], train_alone(name, dtype)["weights"])
            rows.append(
                {
                    "case": name,
                    "processes": count,
                    "wrapper": wrapper,
                    "dtype": dtype,
                    "difference": difference,
                    "equal": difference <= TOLERANCE[dtype] and outcome["alike"],
                }
            )
    return rows


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a case: of each wrapper the largest difference over all numbers of processes, float64 / float32.

    One number where only float32 was measured.
    """
    wrappers = dict.fromkeys(row["wrapper"] for row in rows)
    lines = ["| | " + " | ".join(wrappers) + " |", "|---" * (len(wrappers) + 1) + "|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = []
        for wrapper in wrappers:
            ours = [row for row in rows if (row["case"], row["wrapper"]) == (case, wrapper)]
            found = [[row["difference"] for row in ours if row["dtype"] == dtype] for dtype in TOLERANCE]
            cells.append(" / ".join(f"{max(one):.0e}" if max(one) else "0" for one in found if one) or "-")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and write it."""
    from measuring import replace

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--cases", nargs="+", default=None)
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--wrappers", nargs="+", default=None)
    parser.add_argument("--go-on", action="store_true", help="measure only what the file of results does not have")
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.cases or list(cases())
    if given.work:
        work(names, given.dtypes, given.wrappers, given.work)
        return
    wrappers = given.wrappers or [*EXACT, *(ZERO if find_spec("deepspeed") else ())]
    rows = json.loads(RESULTS.read_text())["rows"]
    if not given.go_on:  # those of a package that is not there now stay
        rows = [row for row in rows if row["wrapper"] not in wrappers]
    for count, wrapper in itertools.product(given.processes, wrappers):
        dtypes = [dtype for dtype in given.dtypes if dtype == "float32" or wrapper not in ZERO]
        there = {(row["case"], row["dtype"]) for row in rows if (row["processes"], row["wrapper"]) == (count, wrapper)}
        lacking = [name for name in names if not any((name, dtype) in there for dtype in dtypes)]
        if wrapper.startswith("zero3"):
            lacking = [name for name in lacking if "adapter" not in name]  # refused with it
        for row in compare([count], lacking, dtypes, [wrapper]) if lacking and dtypes else []:
            print(
                f"{row['case']:34} {count} {wrapper:16} {row['dtype']}  {row['difference']:.1e}  "
                f"{'equal' if row['equal'] else 'DIFFERENT'}",
                flush=True,
            )
            rows.append(row)
        RESULTS.write_text(json.dumps({"tolerance": TOLERANCE, "rows": rows}, indent=1) + "\n")
    replace(PAGE, "processes", as_table(rows))
    raise SystemExit(0 if all(row["equal"] for row in rows) else 1)


if __name__ == "__main__":
    main()
