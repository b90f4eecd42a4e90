"""The original implementation's numbers: loss, gradient and advantages on random tensors."""

import json
import os
from pathlib import Path

import pytest
import torch

from luffy.algorithm import group_advantages, policy_loss

FILE = Path(
    os.environ.get("LUFFY_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden" / "original_objective.json")
)
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="the original's outputs are not here")

SHAPING_OF = {
    "no_reshape": ("none", 0.1),
    "p_div_p_0.1": ("regularized", 0.1),
    "p_div_p_0.3": ("regularized", 0.3),
    "p_div_p_0.5": ("regularized", 0.5),
    "square_root": ("sqrt", 0.1),
    "logp": ("log", 0.1),
}
CASES = json.loads(FILE.read_text()) if FILE.is_file() else []
LOSSES = [pytest.param(case, key, id=f"{index}-{key}") for index, case in enumerate(CASES) for key in case["losses"]]


@pytest.mark.parametrize(("case", "key"), LOSSES)
def test_loss_and_gradient_are_the_originals(case, key):
    reshape, clip, token_mean = key.split("|")
    shaping, gamma = SHAPING_OF[reshape]
    logprobs = torch.tensor(case["logprobs"], dtype=torch.float64, requires_grad=True)
    rows, length = logprobs.shape
    behavior = torch.tensor(case["old_logprobs"], dtype=torch.float64)
    off_policy = torch.tensor(case["off_policy"], dtype=torch.bool)[:, None].expand(rows, length)
    behavior = torch.where(off_policy, 0.0, behavior)  # pi_phi = 1
    advantages = torch.tensor(case["advantages_union"], dtype=torch.float64)[:, None].expand(rows, length)
    loss, _ = policy_loss(
        logprobs,
        behavior,
        advantages,
        off_policy,
        torch.tensor(case["mask"], dtype=torch.float64),
        shaping=shaping,
        gamma=gamma,
        clip_range=0.2 if clip == "clip=True" else None,
        normalization="token" if token_mean == "token_mean=True" else "constant",
        max_length=length,
    )
    # Without token mean the original divides the sum by the length alone; our constant divides by the rows as well.
    loss = loss if token_mean == "token_mean=True" else loss * rows
    loss.backward()
    expected = case["losses"][key]
    torch.testing.assert_close(loss.item(), expected["loss"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(logprobs.grad, torch.tensor(expected["grad"], dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("field", "baseline"), [("advantages_union", "group"), ("advantages_on_policy_baseline", "on_policy")]
)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_advantages_are_the_originals(index, field, baseline):
    case = CASES[index]
    rewards = torch.tensor(case["rewards"], dtype=torch.float64)
    off_policy = torch.tensor(case["off_policy"], dtype=torch.bool)
    size = case["n_per_group"]
    ours = [
        group_advantages(group, traces, baseline=baseline, scale="std" if case["use_std"] else "none")
        for group, traces in zip(rewards.split(size), off_policy.split(size), strict=True)
    ]
    torch.testing.assert_close(torch.cat(ours), torch.tensor(case[field], dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_the_golden_file_covers_what_the_design_lists():
    assert len(CASES) >= 12
    assert {key.split("|")[0] for case in CASES for key in case["losses"]} == set(SHAPING_OF)
