"""A small policy, engines on it, and the gap between engine and trainer."""

import importlib.util

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luffy.config import Config
from luffy.policy import LoadedModel, Scorer
from luffy.rollout.vllm_engine import VllmEngine
from luffy.rollout.vllm_server import VllmServerEngine

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13]]
EOS = (30, 31)
CONTEXT = 64
RANK = 4  # of adapters
TOLERANCE = 1e-4  # log-probs of float32 weights, computed by two libraries
HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: make test-vllm")


def build_policy(seed=0, context=CONTEXT):
    """Tied embeddings, and heads of a width that vLLM's kernels take."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context, initializer_range=0.15, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=EOS[0],
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def vllm_config(folder, policy, engine="vllm", temperature=1.0, **of_vllm):
    policy.save_pretrained(folder / "model")
    return Config.model_validate(
        {
            "model": str(folder / "model"),
            "output": str(folder / "run"),
            "data": {"max_prompt_tokens": CONTEXT},
            "adapter": {"rank": RANK if of_vllm.get("lora") else None},
            "rollout": {
                "engine": engine,
                "temperature": temperature,
                "vllm": {"eager": True, "cache_gib": 0.25, "patience": 240} | of_vllm,
            },
        }
    )


def open_vllm(folder, policy, engine="vllm", temperature=1.0, *, stored=None, **of_vllm):
    """stored: the model in the folder, where it is not the policy."""
    config = vllm_config(folder, stored or policy, engine, temperature, **of_vllm)
    kind = VllmEngine if engine == "vllm" else VllmServerEngine
    return kind(config, LoadedModel(policy, None, EOS, 0))


def gap(engine, policy, sampling):
    """The largest difference between the log-probs of the engine and those of the trainer."""
    groups = engine.generate(PROMPTS, 5, sampling)
    rows = [(prompt, one) for prompt, group in zip(PROMPTS, groups, strict=True) for one in group]
    scores = Scorer(policy, pad_id=0, chunk_elements=10**6)(
        [prompt for prompt, _ in rows],
        [one.token_ids for _, one in rows],
        temperature=sampling.temperature or 1.0,
    )
    sampled = torch.tensor([value for _, one in rows for value in one.logprobs])
    return float((sampled - scores.logprobs.detach()).abs().max())
