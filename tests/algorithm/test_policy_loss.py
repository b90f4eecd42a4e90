"""The loss against plain arithmetic, finite differences and what must not change it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luffy.algorithm import (
    policy_loss,
    supervised_loss,
    surrogate,
    token_weights,
    truncated_importance_weights,
)

LUFFY = {"shaping": "regularized", "gamma": 0.1, "clip_range": None, "normalization": "constant", "max_length": 7}


def draw(seed=0, rows=4, length=6):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    return {
        "logprobs": -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64),
        "behavior_logprobs": -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64),
        "advantages": torch.randn(rows, 1, generator=generator, dtype=torch.float64).expand(rows, length),
        "off_policy": (torch.arange(rows) % 2 == 0)[:, None].expand(rows, length),
        "mask": torch.arange(length) < lengths[:, None],
    }


def plain_term(logprob, behavior, advantage, off_policy, gamma=0.1, clip=None):
    ratio = math.exp(logprob - behavior)
    if off_policy:
        return ratio / (ratio + gamma) * advantage
    if clip is None:
        return ratio * advantage
    return min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("normalization", ["constant", "token", "sequence"])
def test_equal_to_plain_arithmetic(clip, normalization):
    given_tensors = draw()
    loss, _ = policy_loss(**given_tensors, **LUFFY | {"clip_range": clip, "normalization": normalization})
    columns = [given_tensors[name].tolist() for name in given_tensors]
    expected, tokens = 0.0, int(given_tensors["mask"].sum())
    for *values, mask in zip(*columns, strict=True):
        own = sum(mask)
        divisor = {"constant": 4 * 7, "token": tokens, "sequence": 4 * own}[normalization]
        terms = [
            plain_term(*token, clip=clip)
            for token, inside in zip(zip(*values, strict=True), mask, strict=True)
            if inside
        ]
        expected -= sum(terms) / divisor
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shaping", ["none", "regularized", "sqrt", "power", "log"])
@pytest.mark.parametrize("sampled_shaping", ["none", "regularized"])
def test_gradients_agree_with_finite_differences(shaping, sampled_shaping):
    tensors = draw(1)
    entropy = torch.rand(4, 6, dtype=torch.float64)

    def loss(logprobs, entropy):
        options = LUFFY | {"shaping": shaping, "sampled_shaping": sampled_shaping, "clip_range": 0.2}
        extras = {"entropy": entropy, "entropy_coefficient": 0.3, "kl_coefficient": 0.2}
        reference = tensors["behavior_logprobs"]
        return policy_loss(**tensors | {"logprobs": logprobs}, **options, **extras, reference_logprobs=reference)[0]

    assert torch.autograd.gradcheck(loss, (tensors["logprobs"].clone().requires_grad_(), entropy.requires_grad_()))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
def test_what_is_masked_has_no_influence(garbage):
    tensors = draw(2)
    tensors["logprobs"].requires_grad_()
    loss, sums = policy_loss(**tensors, **LUFFY)
    (gradient,) = torch.autograd.grad(loss, tensors["logprobs"])
    dirty = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    outside = ~tensors["mask"]
    for name in ("logprobs", "behavior_logprobs", "advantages"):
        dirty[name][outside] = garbage
    dirty["logprobs"].requires_grad_()
    noise = torch.where(outside, garbage, 1.0)
    other, other_sums = policy_loss(**dirty, **LUFFY, entropy=noise, entropy_coefficient=0.0, reference_logprobs=noise)
    (other_gradient,) = torch.autograd.grad(other, dirty["logprobs"])
    assert other.item() == loss.item()
    assert sums == other_sums
    assert torch.equal(gradient, other_gradient)
    extra, _ = policy_loss(
        **dirty, **LUFFY, entropy=noise, entropy_coefficient=0.1, reference_logprobs=noise, kl_coefficient=0.1,
        importance_weights=noise.abs(),
    )  # fmt: skip
    (extra_gradient,) = torch.autograd.grad(extra, dirty["logprobs"])
    assert torch.isfinite(extra_gradient).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["constant", "token", "sequence"]), st.integers(1, 3))
def test_micro_batches_add_up_and_padding_changes_nothing(seed, normalization, cut):
    tensors = draw(seed)
    options = LUFFY | {"normalization": normalization}
    whole, sums = policy_loss(**tensors, **options)
    weights = token_weights(tensors["mask"].double(), normalization=normalization, max_length=7)
    parts = [
        policy_loss(**{name: tensor[rows] for name, tensor in tensors.items()}, **options, weights=weights[rows])
        for rows in (slice(0, cut), slice(cut, 4))
    ]
    assert sum(part.item() for part, _ in parts) == pytest.approx(whole.item(), rel=1e-12)
    assert all(sums[name] == pytest.approx(sum(part[name] for _, part in parts)) for name in sums)
    padded = {name: torch.cat([tensor, torch.zeros_like(tensor)], dim=1) for name, tensor in tensors.items()}
    assert policy_loss(**padded, **options)[0].item() == pytest.approx(whole.item(), rel=1e-12)
    pieces = [supervised_loss(tensors["logprobs"][rows], tensors["mask"][rows], weights=weights[rows])
              for rows in (slice(0, cut), slice(cut, 4))]  # fmt: skip
    assert sum(pieces).item() == pytest.approx(
        supervised_loss(tensors["logprobs"], tensors["mask"], weights=weights).item(), rel=1e-12
    )


@pytest.mark.parametrize("kept", ["sampled", "traces", "nothing"])
def test_batches_that_lack_something_are_finite_and_right(kept):
    tensors = draw(3)
    keep = {"sampled": ~tensors["off_policy"], "traces": tensors["off_policy"], "nothing": torch.zeros(4, 6).bool()}
    tensors["mask"] = tensors["mask"] & keep[kept]
    tensors["logprobs"].requires_grad_()
    for normalization in ("constant", "token", "sequence"):
        loss, sums = policy_loss(**tensors, **LUFFY | {"normalization": normalization})
        (gradient,) = torch.autograd.grad(loss, tensors["logprobs"])
        assert torch.isfinite(gradient).all()
        assert bool((gradient[~tensors["mask"]] == 0).all())
        if kept == "nothing":
            assert loss.item() == 0
        assert (sums["trace_tokens"] > 0) == (kept == "traces")


@pytest.mark.parametrize("logprob", [-1000.0, -80.0, 0.0])
def test_extreme_probabilities_are_finite_in_float32(logprob):
    shape = (2, 3)
    values = torch.full(shape, logprob, requires_grad=True)
    off_policy = torch.tensor([True, False])[:, None].expand(shape)
    loss, _ = policy_loss(values, torch.zeros(shape), torch.ones(shape), off_policy, torch.ones(shape), **LUFFY)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(values.grad).all()


def test_true_trace_ratios_are_used_when_the_teachers_logprobs_are_known():
    one = torch.ones(1, dtype=torch.float64)
    known = surrogate(one * math.log(0.3), one * math.log(0.6), one, one.bool(), shaping="regularized")
    assert known.item() == pytest.approx(0.5 / 0.6)
    assumed = surrogate(one * math.log(0.3), one * 0, one, one.bool(), shaping="regularized")
    assert assumed.item() == pytest.approx(0.3 / 0.4)


def test_traces_are_never_clipped_and_sampled_tokens_are():
    logprobs = torch.log(torch.tensor([2.0, 2.0], dtype=torch.float64))  # a ratio of 2 against a behaviour of 1
    both = surrogate(logprobs, logprobs * 0, torch.ones(2).double(), torch.tensor([True, False]), clip_range=0.2)
    assert both.tolist() == pytest.approx([2.0, 1.2])


def test_the_ratio_of_shaped_probabilities_on_sampled_tokens():
    logprobs, behavior = torch.log(torch.tensor([0.4])), torch.log(torch.tensor([0.2]))
    value = surrogate(logprobs, behavior, torch.ones(1), torch.tensor([False]), sampled_shaping="regularized")
    assert value.item() == pytest.approx((0.4 / 0.5) / (0.2 / 0.3))


def test_the_current_policy_as_its_own_behaviour_policy():
    logprobs = torch.log(torch.tensor([0.3, 0.6], dtype=torch.float64)).requires_grad_()
    value = surrogate(logprobs, logprobs, torch.tensor([1.0, -0.5]).double(), torch.tensor([False, False]))
    assert value.tolist() == [1.0, -0.5]
    value.sum().backward()
    assert logprobs.grad.tolist() == [1.0, -0.5]  # the policy gradient


def test_entropy_and_kl_by_hand():
    half = torch.full((1, 2), math.log(0.5), dtype=torch.float64)
    base = {"advantages": half * 0, "off_policy": half.bool() & False, "mask": half * 0 + 1}
    options = LUFFY | {"normalization": "token"}
    bonus, _ = policy_loss(half, half, **base, **options, entropy=half * 0 + 0.7, entropy_coefficient=0.1)
    assert bonus.item() == pytest.approx(-0.07)
    reference = torch.full((1, 2), math.log(0.25), dtype=torch.float64)
    penalty, _ = policy_loss(half, half, **base, **options, reference_logprobs=reference, kl_coefficient=2.0)
    assert penalty.item() == pytest.approx(2 * (0.5 - math.log(0.5) - 1))  # r - log r - 1 at r = 1/2


def test_importance_weights_touch_sampled_tokens_alone():
    tensors = draw(4)
    doubled, _ = policy_loss(**tensors, **LUFFY, importance_weights=torch.full((4, 6), 2.0).double())
    on_sampled = tensors | {"mask": tensors["mask"] & ~tensors["off_policy"]}
    weights = token_weights(tensors["mask"].double(), normalization="constant", max_length=7)
    sampled_part, _ = policy_loss(**on_sampled, **LUFFY, weights=weights)
    whole, _ = policy_loss(**tensors, **LUFFY)
    assert doubled.item() == pytest.approx((whole + sampled_part).item())
    weights = truncated_importance_weights(
        torch.log(torch.tensor([0.9, 0.2])), torch.log(torch.tensor([0.3, 0.4])), 2.0
    )
    assert weights.tolist() == pytest.approx([2.0, 0.5])


def test_supervised_loss_by_hand_weighs_every_token_alike():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-10.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert supervised_loss(logprobs, mask).item() == pytest.approx((1 + 2 + 3 + 10) / 4)


def test_sums_are_those_of_the_tokens():
    shape = (1, 4)
    logprobs = torch.log(torch.tensor([[0.5, 0.25, 0.9, 0.1]], dtype=torch.float64))
    off_policy = torch.tensor([[True, True, False, False]])
    behavior = torch.tensor([[0.0, 0.0, math.log(0.5), math.log(0.1)]], dtype=torch.float64)
    ones = torch.ones(shape, dtype=torch.float64)
    _, sums = policy_loss(logprobs, behavior, ones, off_policy, ones, **LUFFY | {"clip_range": 0.2})
    assert sums == pytest.approx(
        {"sampled_tokens": 2, "trace_tokens": 2, "sampled_probability": 1.0, "trace_probability": 0.75,
         "clipped_tokens": 1}
    )  # fmt: skip


def test_a_wrong_shape_names_the_tensor():
    tensors = draw()
    with pytest.raises(ValueError, match=r"advantages is \[4, 1\], logprobs is \[4, 6\]"):
        policy_loss(**tensors | {"advantages": tensors["advantages"][:, :1]}, **LUFFY)
    with pytest.raises(ValueError, match="normalization"):
        token_weights(tensors["mask"], normalization="mean", max_length=1)
