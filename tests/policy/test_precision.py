"""Which type the products of an update have, and what bfloat16 changes."""

import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luffy.config import PolicyConfig
from luffy.policy import Scorer, pick_autocast, precision
from tiny_models import VOCABULARY, build_model


def large(dtype=torch.float32):
    """11M parameters, nearly all of them in the embedding."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=170_000, tie_word_embeddings=True, **shape)).to(dtype)


@pytest.fixture
def with_units(monkeypatch):
    monkeypatch.setattr(precision, "_processor", lambda: {"amx_bf16": True})


@pytest.mark.usefixtures("with_units")
def test_auto_takes_bfloat16_where_the_processor_has_units_and_says_so(caplog):
    caplog.set_level(logging.INFO)
    assert pick_autocast(PolicyConfig(), large()) == "bfloat16"
    assert "policy.autocast=none keeps float32" in caplog.text
    assert pick_autocast(PolicyConfig(autocast="none"), large()) == "none"


@pytest.mark.usefixtures("with_units")
@pytest.mark.parametrize("model", [build_model(dtype=torch.float32), large(torch.float64), large(torch.bfloat16)])
def test_auto_leaves_small_models_and_other_weights_alone(model):
    assert pick_autocast(PolicyConfig(), model) == "none"


@pytest.mark.parametrize("capabilities", [{}, {"amx_bf16": False, "avx512_bf16": True}])
def test_auto_keeps_float32_without_units(monkeypatch, capabilities):
    monkeypatch.setattr(precision, "_processor", lambda: capabilities)
    assert pick_autocast(PolicyConfig(), large()) == "none"
    assert pick_autocast(PolicyConfig(autocast="bfloat16"), large()) == "bfloat16"  # whoever asks for it gets it


def test_the_processor_is_asked_without_an_error():
    assert isinstance(precision.multiplies_bfloat16(torch.device("cpu")), bool)
    assert not precision.multiplies_bfloat16(torch.device("meta"))


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.bfloat16, "none"), (torch.float32, "bfloat16")])
def test_rounding_does_not_cost_the_fast_paths(dtype, autocast):
    paths = Scorer(build_model(dtype=dtype), pad_id=0, chunk_elements=100, autocast=autocast).paths
    assert (paths.packed, paths.split) == (True, True)


def test_scores_in_bfloat16_are_those_of_float32_within_its_rounding():
    model = build_model(dtype=torch.float32)
    rows = [[1, 2, 3]] * 2, [[4, 5, 6, 7], [8, 9]]

    def gradient(autocast):
        model.zero_grad()
        scorer = Scorer(model, pad_id=0, chunk_elements=3 * VOCABULARY, autocast=autocast)
        scores = scorer(*rows, loss=lambda scores, part: -scores.logprobs.sum())
        scores.loss.backward()
        assert scorer.paths.packed
        return scores.logprobs, torch.cat([one.grad.flatten() for one in model.parameters()])

    (exact, direction), (rounded, other) = gradient("none"), gradient("bfloat16")
    assert rounded.dtype == other.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.1
    assert torch.cosine_similarity(direction, other, dim=0) > 0.999
