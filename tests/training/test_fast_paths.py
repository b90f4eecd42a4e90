"""Whatever makes an update fast, three of its steps are those of a plain loop, in every architecture and the miniature.

The plain loop scores one row at a time by the model's own forward pass, on whole logits, by the formulas of the paper
(2504.14945, equations 4 to 8, with the implementation's normaliser), and steps with torch's AdamW.
"""

import copy

import pytest
import torch
from workload import norm_in_its_own_precision

from luffy import load_config
from luffy.policy import LoadedModel, load_model
from luffy.policy.load import disable_dropout
from luffy.training.groups import assign_advantages
from luffy.training.learner import Learner
from luffy.types import Group, Problem, Rollout
from plain_loop import plain_loss
from tiny_models import ARCHITECTURES, build_architecture

# of the way that the weights have gone; AdamW takes a full step along a gradient that is nothing but rounding, too
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-3}
STEPS, RATE, MOST_TOKENS, GRADIENT_NORM = 3, 1e-3, 60, 0.5
REWARDS = ([1, 0, 0, 0, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1])  # of a group: the last is the trace's
LENGTHS = ((3, 9, 17, 26), (5, 5, 11, 2), (8, 4, 4, 6))  # of a group's own rollouts
PROMPTS, TRACES = (31, 2, 7), (55, 40, 12)  # one prompt is longer than its completions, one trace ten times as long


def build(name, dtype):
    if name != "miniature":
        return build_architecture(name, dtype)
    model = load_model("miniature", load_config().policy).model.to(dtype)
    return norm_in_its_own_precision(model) if dtype == torch.float64 else model


def build_groups(vocabulary):
    torch.manual_seed(0)

    def draw(length):
        return torch.randint(2, vocabulary, (length,)).tolist()

    groups = []
    for number, (rewards, lengths) in enumerate(zip(REWARDS, LENGTHS, strict=True)):
        prompt = draw(PROMPTS[number])
        completions = [draw(length) for length in (*lengths, TRACES[number])]
        rollouts = [
            Rollout(prompt, one, [0.0] * len(one), one is completions[-1], True, float(reward), "")
            for one, reward in zip(completions, rewards, strict=True)
        ]
        groups.append(Group(Problem(str(number), "p", "a"), rollouts))
    return groups


def plain_steps(model, groups):
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        plain_loss(model, groups, MOST_TOKENS).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [*ARCHITECTURES, "miniature"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_three_steps_are_those_of_a_plain_loop(name, dtype, recomputed):
    model = build(name, dtype)
    disable_dropout(model)  # as load_model does: recomputing needs training mode
    before, plain = copy.deepcopy(model), copy.deepcopy(model)
    settings = {
        "rollout.max_tokens": MOST_TOKENS,
        "rollout.group_size": 5,
        "optimizer.learning_rate": RATE,
        "optimizer.max_gradient_norm": GRADIENT_NORM,
        "policy.token_budget": 100,  # several micro-batches
        "policy.chunk_elements": 10 * model.config.vocab_size,  # several chunks of each
        "policy.gradient_checkpointing": recomputed,
    }
    if recomputed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    learner = Learner(LoadedModel(model, None, (1,), 0), load_config(overrides=settings))
    learner.start_phase("rl", 0, STEPS)
    groups = build_groups(model.config.vocab_size)
    assign_advantages(groups, learner.method, learner.config)
    for step in range(STEPS):
        learner.update(groups, step)
    assert (learner.scorer.paths.packed, learner.scorer.paths.split) == (True, True)
    plain_steps(plain, groups)
    ours, expected, start = (
        torch.cat([weight.detach().flatten() for weight in one.parameters()]) for one in (learner.policy, plain, before)
    )
    assert (ours - expected).norm() < TOLERANCE[dtype] * (expected - start).norm()
