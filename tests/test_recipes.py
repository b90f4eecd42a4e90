"""The recipes: each says what it needs, is valid for every method, and trains a tiny model of the same architecture."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from luffy import load_config, train
from luffy.algorithm.methods import METHODS
from luffy.data.public_benchmarks import PUBLIC_BENCHMARKS
from tiny_models import build_byte_tokenizer

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
LANGUAGE_MODELS = [name for name in RECIPES if name != "miniature.yaml"]
CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
SHAPE = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
QWEN_MATH = {"max_position_embeddings": 4096, "sliding_window": 4096, "use_sliding_window": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ARCHITECTURES = {  # by the model's name: context, rotary embedding and tied or untied weights as the real ones have
    "Qwen/Qwen2.5-Math-7B": lambda: Qwen2Config(**SHAPE, **QWEN_MATH),
    "Qwen/Qwen2.5-Math-1.5B": lambda: Qwen2Config(**SHAPE, **QWEN_MATH, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B-Instruct": lambda: Qwen2Config(**SHAPE, max_position_embeddings=32768),
    "Qwen/Qwen2.5-0.5B-Instruct": lambda: Qwen2Config(**SHAPE, max_position_embeddings=32768, tie_word_embeddings=True),
    "Qwen/Qwen2.5-1.5B-Instruct": lambda: Qwen2Config(**SHAPE, max_position_embeddings=32768, tie_word_embeddings=True),
    "meta-llama/Llama-3.1-8B": lambda: LlamaConfig(**SHAPE, max_position_embeddings=131072, rope_parameters=LLAMA3),
    "models/smollm2-135m": lambda: LlamaConfig(**SHAPE, max_position_embeddings=8192, tie_word_embeddings=True),
}
PROBLEM = {"prompt": "What is 2 + 2?", "answer": "4", "traces": ["<think>\n2 + 2 = 4\n</think>\nSo \\boxed{4}"]}


def methods_of(name):
    return ["luffy", "on_policy", *yaml.safe_load((FOLDER / name).read_text()).get("methods", {})]


def save_model(name, folder):
    """A tiny random model of the architecture that the recipe's model has."""
    torch.manual_seed(0)
    tokenizer = build_byte_tokenizer(chat_template=CHATML)
    config = ARCHITECTURES[load_config(FOLDER / name).model]()
    config.vocab_size, config.bos_token_id, config.eos_token_id = len(tokenizer), 0, 1
    built = (Qwen2ForCausalLM if config.model_type == "qwen2" else LlamaForCausalLM)(config)
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(name, tmp_path, method):
    """Two problems, a step, short completions; everything else as the recipe says."""
    save_model(name, tmp_path / "model")
    rows = [PROBLEM | {"id": f"{number}"} for number in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = {
        "method": method,
        "model": str(tmp_path / "model"),
        "output": str(tmp_path / "run"),
        "steps": 1,
        "problems_per_step": 2,
        "data.train": str(tmp_path / "train.jsonl"),
        "data.max_prompt_tokens": 2048,  # a byte is a token here
        "data.holdout": 0,
        "reward.workers": 1,
        "rollout.group_size": 3,
        "rollout.max_tokens": 64,
        "sft.steps": 1,
        "sft.batch_size": 2,
        "evaluation.benchmarks": [],
        "evaluation.watch": [],
    }
    return train(load_config(FOLDER / name, overrides))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_needs_and_what_to_expect(name):
    head = [line for line in (FOLDER / name).read_text().splitlines() if line.startswith("#")]
    for word in ("Start:", "Needs:", "Time:", "Expect"):
        assert any(word in line for line in head), f"{name} lacks {word}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_for_each_of_its_methods(name):
    for method in methods_of(name):
        config = load_config(FOLDER / name, {"method": method})
        assert METHODS[method]
        for benchmark in config.evaluation.benchmarks:
            given = benchmark.partition("@")[0]
            assert given in PUBLIC_BENCHMARKS or given == "holdout" or given.startswith("miniature/") or "." in given


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_recipe_trains_a_tiny_model_of_the_same_architecture(tmp_path, name):
    summary = run(name, tmp_path, "luffy")
    assert summary.status == "finished"
    metrics = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["reward/traces"] == 1.0
    assert metrics["update/skipped"] == 0.0


@pytest.mark.parametrize("method", ["on_policy", "sft", "sft_rl", "rl_sft"])
def test_the_baselines_of_the_paper_train_too(tmp_path, method):
    assert run("paper/qwen2.5-math-7b.yaml", tmp_path, method).status == "finished"


@pytest.mark.parametrize("name", ["paper/qwen2.5-math-7b.yaml", "paper/qwen2.5-math-1.5b.yaml"])
def test_the_context_is_extended_and_stays_so_in_the_trained_model(tmp_path, name):
    run(name, tmp_path, "luffy")
    trained = AutoConfig.from_pretrained(tmp_path / "run/model")
    assert trained.max_position_embeddings == 16384
    assert trained.rope_parameters["rope_theta"] == 40000


def test_without_the_extension_the_papers_length_is_refused(tmp_path):
    from luffy.errors import ModelError

    name = "paper/qwen2.5-math-7b.yaml"
    save_model(name, tmp_path / "model")
    (tmp_path / "train.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    overrides = {
        "model": str(tmp_path / "model"),
        "output": str(tmp_path / "run"),
        "data.train": str(tmp_path / "train.jsonl"),
        "data.max_prompt_tokens": 2048,
        "policy.context_length": None,
        "evaluation.benchmarks": [],
        "evaluation.watch": [],
    }
    with pytest.raises(ModelError, match=r"reads 4096 tokens, .* Lower rollout.max_tokens, .* policy.context_length="):
        train(load_config(FOLDER / name, overrides))
