"""Large layers multiply by blocked copies of their weights while an engine generates, and at no other time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from luffy.policy.precision import multiplies_bfloat16
from luffy.rollout import Sampling, TransformersEngine
from luffy.rollout.packed_linear import LEAST_TOKENS, _gains, _has_onednn, joined, packed_linears

pytestmark = pytest.mark.skipif(not _has_onednn(), reason="torch comes without oneDNN")
PROMPT = [5, 9, 301, 7]


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Its queries, MLP and head are large enough to be packed, its keys and values are not."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True,
        )
    ).eval()  # fmt: skip


def logits(model: LlamaForCausalLM, rows: int = 3) -> torch.Tensor:
    """Of some rows of a prompt."""
    return model(torch.tensor([PROMPT] * rows)).logits.detach()


@pytest.mark.parametrize("rows", [1, 7, 300])
@torch.no_grad()
def test_products_are_those_of_the_layers(model: LlamaForCausalLM, rows: int) -> None:
    expected = logits(model, rows)
    with packed_linears(model, LEAST_TOKENS):
        seen = logits(model, rows)
        model.model.layers[0].mlp.up_proj.weight.zero_()
        assert torch.equal(logits(model, rows), seen), "not the weight itself is read but its copy"
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not multiplies_bfloat16(torch.device("cpu")), reason="the processor has no units for bfloat16")
@torch.no_grad()
def test_bfloat16_is_packed_where_the_processor_multiplies_it(model: LlamaForCausalLM) -> None:
    expected = logits(model)
    rounded = model.to(torch.bfloat16)
    assert _gains(rounded.lm_head)
    with packed_linears(rounded, LEAST_TOKENS):
        seen = logits(rounded)
    assert (seen - expected).abs().max() < 0.02 * expected.abs().max()


def test_bfloat16_is_left_alone_where_products_of_it_are_emulated(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luffy.policy.precision._processor", dict)
    assert not _gains(model.to(torch.bfloat16).lm_head)


def test_which_layers_are_packed(model: LlamaForCausalLM) -> None:
    layer = model.model.layers[0]
    assert _gains(layer.mlp.up_proj)
    assert _gains(layer.self_attn.q_proj)
    assert _gains(model.lm_head)
    assert not _gains(layer.self_attn.k_proj), "too small"
    assert not _gains(layer.mlp.up_proj.double())


@torch.no_grad()
def test_nothing_is_packed_for_a_few_tokens(model: LlamaForCausalLM) -> None:
    expected = logits(model)
    with packed_linears(model, LEAST_TOKENS - 1):
        assert torch.equal(logits(model), expected)


@torch.no_grad()
def test_layers_are_as_before_afterwards_even_after_an_error(model: LlamaForCausalLM) -> None:
    expected = logits(model)
    with pytest.raises(ZeroDivisionError), packed_linears(model, LEAST_TOKENS):
        raise ZeroDivisionError
    assert torch.equal(logits(model), expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_gradient_is_that_of_the_trained_weight(model: LlamaForCausalLM) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    with packed_linears(model, LEAST_TOKENS):
        model(torch.tensor([PROMPT])).logits.sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_layer_with_a_forward_of_its_own_is_left_alone(model: LlamaForCausalLM) -> None:
    head = model.lm_head
    head.forward = lambda rows: nn.Linear.forward(head, rows) + 1
    with packed_linears(model, LEAST_TOKENS):
        shifted = logits(model)
    del head.forward
    torch.testing.assert_close(shifted - 1, logits(model), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_each_generation_takes_the_weights_of_the_moment(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model, eos_ids=[0], pad_id=0)
    sampling = Sampling(LEAST_TOKENS, temperature=0.0)
    before = engine.generate([PROMPT], 1, sampling)[0][0]
    model.model.layers[0].mlp.down_proj.weight.mul_(-40)
    after = engine.generate([PROMPT], 1, sampling)[0][0]
    changed = LlamaForCausalLM(model.config).eval()
    changed.load_state_dict(model.state_dict())
    fresh = TransformersEngine(changed, eos_ids=[0], pad_id=0).generate([PROMPT], 1, sampling)[0][0]
    assert after.token_ids == fresh.token_ids != before.token_ids


@pytest.mark.parametrize("size", [8, 512], ids=["small", "packed"])
@pytest.mark.parametrize("biases", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [0, 2**22], ids=["one after the other", "as one"])
@torch.no_grad()
def test_joined_layers_give_their_outputs_side_by_side(
    size: int, biases: tuple[bool, ...], dtype: torch.dtype, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luffy.rollout.packed_linear.LARGEST_COPY", largest)
    layers = [nn.Linear(size, size * place, bias, dtype=dtype) for place, bias in enumerate(biases, 1)]
    rows = torch.randn(5, size, dtype=dtype)
    product = joined(layers)
    expected = torch.cat([layer(rows) for layer in layers], dim=-1)
    torch.testing.assert_close(product(rows), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined(layers[1:])(rows), layers[1](rows), rtol=1e-5, atol=1e-5)
