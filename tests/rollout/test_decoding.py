"""Decoding is right for every architecture: against a reference that recomputes the whole sequence for each token."""

import logging

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from workload import norm_in_its_own_precision

from luffy.rollout import Sampling, TransformersEngine, draw_tokens
from luffy.rollout.decoding import LeanDecoder, PlainDecoder, SharedPromptDecoder
from luffy.rollout.lean import ARCHITECTURES, LeanForward
from tiny_models import VOCABULARY

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11, 5], [12, 13]]
EOS = (30, 31, 32)
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
WINDOWS = ["sliding_attention", "full_attention"] * 2
FAST = {
    "llama": {},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, stretched positions": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "llama, one key head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen2, tied": {"tie_word_embeddings": True},
    "qwen2, mixed windows": {"use_sliding_window": True, "sliding_window": 5, "layer_types": WINDOWS},
    "qwen3": {},
    "mistral, window shorter than prompts": {"sliding_window": 3},
    "mistral, window shorter than completions": {"sliding_window": 9},
    "gemma3_text": {"sliding_window": 6, "layer_types": WINDOWS, "query_pre_attn_scalar": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "phi3": {},
    "granite": {"attention_multiplier": 0.3},
}
LEAN = [kind for kind in FAST if kind.split(",")[0] in ARCHITECTURES]
PLAIN = {
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8},  # caps the products of its attention
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},  # convolutions
    "llama, eager": {"attn_implementation": "eager"},
}


def build(kind, dtype=torch.float64, **more):
    name, special = kind.split(",")[0], {**FAST, **PLAIN}[kind] | more
    known = CONFIG_MAPPING[name]()
    shape = {key: value for key, value in SHAPE.items() if hasattr(known, key)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**{**shape, **special}))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    return model.to(dtype).eval()


def recomputed(model, prompt, completion, sampling, noise):
    """What is drawn at each place of a completion, and its log-prob, after one pass over the sequence without a cache.

    Where all tokens are the same, drawing one by one would have given the same completion.
    """
    sequence = torch.tensor([[*prompt, *completion.token_ids]])
    logits = model(input_ids=sequence, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return draw_tokens(logits, sampling, None if noise is None else noise[: len(logits)])


@torch.no_grad()
def check(model, sampling, **options):
    """Compare an engine's groups of 3 with the reference; returns the engine."""
    engine = TransformersEngine(model, eos_ids=EOS, pad_id=0, **options)
    groups = engine.generate(PROMPTS, 3, sampling)
    generator = torch.Generator().manual_seed(sampling.seed)
    noise = torch.rand(len(PROMPTS) * 3, sampling.max_tokens, generator=generator)
    assert len({len(one.token_ids) for group in groups for one in group}) > 1
    for row, one in enumerate(one for group in groups for one in group):
        of_row = noise[row] if sampling.temperature else None
        tokens, logprobs = recomputed(model, PROMPTS[row // 3], one, sampling, of_row)
        assert list(one.token_ids) == tokens.tolist()
        assert one.logprobs == pytest.approx(logprobs.tolist(), abs=1e-9 if model.dtype == torch.float64 else 1e-4)
    return engine


@pytest.mark.parametrize("short", [0, 10**6], ids=["shared prompts", "copied prompts"])
@pytest.mark.parametrize("batch_tokens", [10**6, 230], ids=["together", "entering as others leave"])
@pytest.mark.parametrize("kind", FAST)
def test_the_fast_path_equals_recomputation(kind, batch_tokens, short, monkeypatch):
    monkeypatch.setattr("luffy.rollout.cache.SHORT", short)
    engine = check(build(kind), Sampling(20, seed=3), batch_tokens=batch_tokens)
    assert engine._decoder is (LeanDecoder if kind in LEAN else SharedPromptDecoder)


@pytest.mark.parametrize("short", [0, 10**6], ids=["shared prompts", "copied prompts"])
@pytest.mark.parametrize("kind", LEAN)
def test_by_its_own_forward_pass_a_lean_model_says_the_same(kind, short, monkeypatch):
    monkeypatch.setattr("luffy.rollout.cache.SHORT", short)
    monkeypatch.setattr("luffy.rollout.lean.ARCHITECTURES", ())
    engine = check(build(kind), Sampling(20, seed=3), batch_tokens=230)
    assert engine._decoder is SharedPromptDecoder


def test_a_few_tokens_are_decoded_by_its_own_forward_pass(monkeypatch):
    engine = check(build("llama"), Sampling(20, seed=3))
    monkeypatch.setattr(LeanForward, "__call__", None)
    engine.generate(PROMPTS, 2, Sampling(4))


class Another(torch.nn.SiLU):
    """As adapters and quantised weights are: a class of neither library."""


CHANGES = {
    "a hook": lambda model: model.model.layers[1].mlp.register_forward_hook(lambda module, given, output: 2 * output),
    "a forward of its own": lambda model: setattr(model.lm_head, "forward", lambda states: -states[..., :1] * 3),
    "another class": lambda model: setattr(model.model.layers[0].mlp, "act_fn", Another()),
    "another norm": norm_in_its_own_precision,
}


@pytest.mark.parametrize("change", [*CHANGES, "positions that depend on the length"])
def test_a_changed_model_is_not_decoded_leanly(change):
    dynamic = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    model = build("llama") if change in CHANGES else build("llama", rope_parameters=dynamic)
    LeanForward(build("llama"))
    CHANGES.get(change, lambda model: None)(model)
    with pytest.raises(NotImplementedError):
        LeanForward(model)


def test_a_lean_pass_that_differs_is_not_used(monkeypatch):
    monkeypatch.setattr("luffy.rollout.lean._Layer._turned", lambda self, heads, cosine, sine: heads)
    assert check(build("llama"), Sampling(20, seed=3))._decoder is SharedPromptDecoder


@pytest.mark.parametrize("kind", PLAIN)
def test_the_plain_path_equals_recomputation_and_is_logged_once(kind, caplog):
    caplog.set_level(logging.WARNING, "luffy")
    # in float64 the library's own eager attention gives no numbers for padded rows
    engine = check(build(kind, torch.float32), Sampling(20, seed=3), batch_tokens=230)
    assert engine._decoder is PlainDecoder
    assert caplog.text.count("is decoded by the plain path, which is slower") == 1


@pytest.mark.parametrize("sampling", [Sampling(20, temperature=0), Sampling(20, temperature=0.7, top_p=0.8, seed=5)])
def test_other_ways_of_sampling(sampling):
    check(build("qwen3"), sampling, batch_tokens=230)


@pytest.mark.parametrize("short", [0, 10**6], ids=["shared prompts", "copied prompts"])
def test_own_tokens_beyond_a_block(short, monkeypatch):
    monkeypatch.setattr("luffy.rollout.cache.SHORT", short)
    monkeypatch.setattr("luffy.rollout.cache.BLOCK", 3)
    check(build("gemma3_text"), Sampling(20, seed=3))
