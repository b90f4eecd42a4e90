"""The loss in verl's signature, on tensors; beside verl itself where it is installed."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from luffy.algorithm import policy_loss
from luffy.integrations.verl import make_policy_loss, mark_traces, read_marks, share_of_loss

MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]
ROWS, TOKENS = 4, 6


def batch(seed=0):
    """(old log-probs, log-probs, advantages, mask, which rows are traces): the last row is a trace."""
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, TOKENS)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64)
    new = (old + torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-0.4, 0.4)).clamp(max=-0.01)
    advantages = torch.tensor([-0.25, -0.25, -0.25, 0.75], dtype=torch.float64)[:, None].expand(shape)
    mask = torch.arange(TOKENS) < torch.tensor([2, 6, 4, 5])[:, None]
    return old, new.requires_grad_(), advantages, mask, torch.tensor([False, False, False, True])


def config(**info):
    return SimpleNamespace(global_batch_info=info, clip_ratio=0.2)


@pytest.mark.parametrize(
    ("mode", "normalization"),
    [("token-mean", "token"), ("seq-mean-token-sum-norm", "constant"), ("seq-mean-token-mean", "sequence")],
)
@pytest.mark.parametrize("method", ["luffy", "luffy_clip", "mixed"])
def test_loss_and_gradient_are_those_of_the_algorithm(method, mode, normalization):
    old, new, advantages, mask, traces = batch()
    loss, metrics = make_policy_loss(method)(
        mark_traces(old, traces), new, advantages, mask, mode, config(loss_scale_factor=9)
    )
    (gradient,) = torch.autograd.grad(loss, new)
    off_policy = traces[:, None].expand_as(new)
    expected, sums = policy_loss(
        new,
        torch.where(off_policy, 0.0, old),
        advantages,
        off_policy,
        mask,
        shaping="none" if method == "mixed" else "regularized",
        gamma=0.1,
        clip_range=None if method == "luffy" else 0.2,
        normalization=normalization,
        max_length=9,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, new)[0], rtol=1e-12, atol=0)
    assert metrics == {f"luffy/{name}": value for name, value in sums.items()}
    assert metrics["luffy/trace_tokens"] == 5


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_and_processes_add_up_to_the_batch(mode):
    old, new, advantages, mask, traces = batch()
    loss = make_policy_loss()
    marked = mark_traces(old, traces)
    whole, _ = loss(marked, new, advantages, mask, mode, config(loss_scale_factor=TOKENS))
    info = config(dp_size=2, batch_num_tokens=17, global_batch_size=ROWS, loss_scale_factor=TOKENS)
    parts = [
        loss(marked[part], new[part], advantages[part], mask[part], mode, info)[0]
        for part in (slice(0, 1), slice(1, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-12, atol=0)  # gradients of two processes are averaged


def test_marks_are_read_as_they_were_made_and_certain_tokens_are_no_traces():
    old, _, _, _, traces = batch()
    old[0, 0] = 0.0  # a token that the policy was certain of
    teacher = old - 0.5
    behavior, off_policy = read_marks(mark_traces(old, traces, teacher))
    assert torch.equal(off_policy, traces[:, None].expand_as(old))
    torch.testing.assert_close(behavior, torch.where(off_policy, teacher, old))
    behavior, _ = read_marks(mark_traces(old, traces))
    assert not behavior[3].any()  # pi_phi = 1
    part = torch.zeros_like(old, dtype=torch.bool)
    part[1, 3:] = True
    assert torch.equal(read_marks(mark_traces(old, part))[1], part)


def test_weights_of_the_engines_correction_leave_traces_alone():
    old, new, advantages, mask, traces = batch()
    loss, marked = make_policy_loss(), mark_traces(old, traces)
    plain, doubled = (
        loss(marked, new, advantages, mask, "token-sum", config(), torch.full_like(old, weight))[0]
        for weight in (1.0, 2.0)
    )
    own = loss(marked, new, advantages, mask & ~traces[:, None], "token-sum", config())[0]
    torch.testing.assert_close(doubled - plain, own)


def test_what_it_does_not_know():
    with pytest.raises(ValueError, match="method is 'rl_sft'; as a policy loss there are: on_policy, luffy"):
        make_policy_loss("rl_sft")
    with pytest.raises(ValueError, match="loss_agg_mode is 'mean'; known: token-mean, token-sum"):
        share_of_loss(torch.ones(1, 1), "mean", {})


# -- with verl


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_those_of_verls_own_aggregation(mode):
    algorithms = pytest.importorskip("verl.trainer.ppo.core_algos")
    _, new, advantages, mask, _ = batch()
    for info in ({}, {"dp_size": 2, "batch_num_tokens": 17, "global_batch_size": ROWS, "loss_scale_factor": 9}):
        theirs = algorithms.agg_loss(new * advantages, mask, mode, **info)
        weights = share_of_loss(mask.double(), mode, info)
        torch.testing.assert_close((weights * new * advantages).sum(), theirs, rtol=1e-7, atol=0)


def test_without_traces_it_is_verls_own_loss_below_its_second_clip():
    algorithms = pytest.importorskip("verl.trainer.ppo.core_algos")
    from verl.workers.config import ActorConfig

    from luffy.integrations.verl import register

    register("luffy_on_policy", "on_policy")
    actor = ActorConfig(strategy="fsdp", rollout_n=ROWS, ppo_micro_batch_size_per_gpu=ROWS, clip_ratio=0.2)
    old, new, advantages, mask, _ = batch()
    given = {
        "old_log_prob": old,
        "log_prob": new,
        "advantages": advantages,
        "response_mask": mask,
        "loss_agg_mode": "token-mean",
        "config": actor,
        "rollout_is_weights": None,
    }
    ours, theirs = (algorithms.get_policy_loss_fn(name)(**given)[0] for name in ("luffy_on_policy", "vanilla"))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_verl_finds_it_by_the_module_that_its_environment_names(tmp_path):
    pytest.importorskip("verl")
    (tmp_path / "my_losses.py").write_text("from luffy.integrations.verl import register\n\nregister('luffy')\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run(
        [sys.executable, "-c", "from verl.trainer.ppo.core_algos import get_policy_loss_fn as f; f('luffy')"],
        env=os.environ | {"PYTHONPATH": paths, "VERL_USE_EXTERNAL_MODULES": "my_losses"},
        check=True,
    )
