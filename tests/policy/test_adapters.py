"""Adapters: what is trained, what is merged, and that every path sees the same model."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from luffy.config import AdapterConfig
from luffy.errors import ModelError
from luffy.policy import Scorer, load_model
from luffy.policy.adapters import (
    adapter_disabled,
    add_adapter,
    check_adapter,
    load_adapter,
    merged_weights,
    plain_copy,
    save_adapter,
    trained_weights,
)
from luffy.rollout.transformers_engine import copy_weights
from luffy.training.checkpoint import save_model
from small_runs import small
from tiny_models import VOCABULARY, build_model

pytest.importorskip("peft")


def adapted(kind="llama", rank=4, trained=True, **settings):
    model = build_model(kind)
    add_adapter(model, AdapterConfig(rank=rank, **settings), seed=0)
    if trained:
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def rows():
    draw = random.Random(0)
    prompts = [[draw.randrange(VOCABULARY) for _ in range(9)]] * 3
    return prompts, [[draw.randrange(VOCABULARY) for _ in range(length)] for length in (4, 11, 7)]


def score(model, **options):
    return Scorer(model, pad_id=0, chunk_elements=2**20, **options)


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_packed_and_split_paths_hold_and_equal_the_plain_one(kind):
    model = adapted(kind)
    fast, plain = score(model), score(model, packed=False)
    assert (fast.paths.packed, fast.paths.split) == (True, True)
    torch.testing.assert_close(fast(*rows()).logprobs, plain(*rows()).logprobs, rtol=1e-9, atol=1e-9)


def test_dropout_does_not_cost_the_fast_paths():
    model = adapted(dropout=0.5).train()
    assert score(model).paths.packed
    assert model.training


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_merged_weights_are_the_adapted_model_under_the_names_of_the_base(kind):
    model, base = adapted(kind), build_model(kind)
    expected = score(model)(*rows()).logprobs
    assert not torch.allclose(expected, score(base)(*rows()).logprobs, atol=1e-2)
    plain = plain_copy(model)
    assert list(plain.state_dict()) == list(base.state_dict()) == [name for name, _ in merged_weights(model)]
    torch.testing.assert_close(score(plain)(*rows()).logprobs, expected, rtol=1e-9, atol=1e-9)
    copy_weights(model, base)  # as an engine takes them over
    torch.testing.assert_close(score(base)(*rows()).logprobs, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(score(model)(*rows()).logprobs, expected, rtol=0, atol=0)  # itself as it was


def test_the_base_is_there_while_the_adapter_is_disabled():
    model = adapted()
    before = score(model)(*rows()).logprobs
    with adapter_disabled(model), torch.no_grad():
        torch.testing.assert_close(score(model)(*rows()).logprobs, score(build_model())(*rows()).logprobs)
    assert torch.equal(score(model)(*rows()).logprobs, before)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_an_untrained_adapter_changes_nothing_and_follows_its_seed():
    model = adapted(trained=False)
    torch.testing.assert_close(score(model)(*rows()).logprobs, score(build_model())(*rows()).logprobs)
    again, other = build_model(), build_model()
    add_adapter(again, AdapterConfig(rank=4), seed=0)
    add_adapter(other, AdapterConfig(rank=4), seed=1)
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(model.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(model.state_dict()[name], other.state_dict()[name])


def test_only_the_adapter_has_a_gradient():
    model = adapted()
    score(model)(*rows()).logprobs.sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(with_gradient) == 2 * 2 * 7  # two matrices, two blocks, seven linear layers each


def test_of_full_rank_the_first_gradient_is_that_of_the_layer():
    """With A the identity and B zero, W + B A has dL/dB = dL/dW and dL/dA = 0."""
    name, base = "model.layers.1.self_attn.o_proj", build_model()
    score(base)(*rows()).logprobs.sum().backward()
    model = adapted(rank=32, trained=False, alpha=32, targets=[name])
    layer = model.get_submodule(name)
    torch.nn.init.eye_(layer.lora_A["default"].weight)
    score(model)(*rows()).logprobs.sum().backward()
    torch.testing.assert_close(layer.lora_B["default"].weight.grad, base.get_submodule(name).weight.grad)
    assert not layer.lora_A["default"].weight.grad.any()


def test_saved_and_loaded_bitwise_and_readable_by_peft(tmp_path):
    from peft import PeftModel

    model, other = adapted(), adapted(trained=False)
    save_adapter(tmp_path, model, trained_weights(model), "base")
    load_adapter(tmp_path, other)
    assert all(torch.equal(one, other.state_dict()[name]) for name, one in model.state_dict().items())
    theirs = PeftModel.from_pretrained(build_model(), tmp_path)
    ids = torch.tensor(rows()[1][1])[None]
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-6, atol=1e-6)


def test_the_exported_model_is_plain_and_says_the_same(tmp_path):
    loaded = load_model("miniature", small(tmp_path).policy)
    add_adapter(loaded.model, AdapterConfig(rank=4), seed=0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_model(tmp_path / "model", loaded, dict(merged_weights(loaded.model)))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(2, 14)[None]
    torch.testing.assert_close(exported(ids).logits, loaded.model(ids).logits, rtol=1e-4, atol=1e-4)


def test_targets_that_are_not_there_and_a_package_that_is_missing(monkeypatch):
    with pytest.raises(ModelError, match=r"no linear layer 'q_prj'\. Did you mean 'q_proj'\? There are: down_proj"):
        adapted(targets=["q_prj"])
    with pytest.raises(ModelError, match="no linear layer 'lm_head'"):
        adapted("qwen", targets=["lm_head"])  # its weight is the embedding's, too
    monkeypatch.setattr("luffy.policy.adapters.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'luffy-rl\[adapters\]'"):
        check_adapter(AdapterConfig(rank=1))
