"""Runs of a few small steps, and what makes two of them the same."""

import json

import pytest
import torch
from safetensors.torch import load_file

from luffy import load_config, train

SMALL = {
    "steps": 4,
    "problems_per_step": 3,
    "data.miniature.problems": 8,
    "data.miniature.traced": 8,
    "rollout.group_size": 3,
    "rollout.max_tokens": 70,
    "reward.workers": 0,
    "sft.steps": 3,
    "sft.batch_size": 4,
    "sft.learning_rate": 1e-3,
    "optimizer.learning_rate": 1e-3,
    "rollouts_every": 2,
    "evaluation.benchmarks": ["miniature/short"],
    "evaluation.watch": ["miniature/short"],
    "evaluation.every": 2,
    "evaluation.limit": 3,
    "evaluation.max_tokens": 10,
}


def small(path, **overrides):
    """The configuration of a run of four small steps."""
    return load_config(overrides=SMALL | {"output": str(path)} | overrides)


def train_interrupted(config, step):
    """Train until Ctrl-C after a step, then go on to the end with the same configuration."""

    def cut(done, steps, metrics):
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_step=cut)
    train(config)


def lines(path):
    """The objects of a JSONL file, none where it is missing."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def numbers(path):
    """Metrics without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "perf/tokens_per"))}
        for line in lines(path / "metrics.jsonl")
    ]


def assert_same_run(one, other):
    """Bitwise the same weights; the same metrics, evaluations, rollouts and summary."""
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (one, other))
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert numbers(one) == numbers(other)
    assert lines(one / "evaluations.jsonl") == lines(other / "evaluations.jsonl")
    for kind in ("rollouts", "traces"):
        for path in one.glob(f"{kind}/*"):
            assert path.read_text() == (other / kind / path.name).read_text()
        assert len(list(one.glob(f"{kind}/*"))) == len(list(other.glob(f"{kind}/*")))
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (one, other))
    same = {"seconds": 0, "output": ""}
    assert ours | same == theirs | same
