"""Tiny random models of several architectures, for tests."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from workload import norm_in_its_own_precision

VOCABULARY = 40
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
WITH_HEADS = SHAPE | {"head_dim": 8, "pad_token_id": 0}
ARCHITECTURES = {  # every kind of attention that rows are packed for
    "llama, grouped queries": lambda: LlamaForCausalLM(LlamaConfig(**WITH_HEADS)),
    "qwen2, tied": lambda: Qwen2ForCausalLM(Qwen2Config(**WITH_HEADS, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**WITH_HEADS)),
    "mistral, window of 7": lambda: MistralForCausalLM(MistralConfig(**WITH_HEADS, sliding_window=7)),
    "qwen2, every other layer a window of 5": lambda: Qwen2ForCausalLM(
        Qwen2Config(**WITH_HEADS, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "gpt2, learned positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3)
    ),
}


def build_model(kind="llama", dtype=torch.float64, seed=0):
    """A random model with grouped-query attention; `qwen` ties its embeddings."""
    torch.manual_seed(seed)
    model = (
        LlamaForCausalLM(LlamaConfig(**SHAPE))
        if kind == "llama"
        else Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))
    )
    model = model.to(dtype).eval()
    return norm_in_its_own_precision(model) if dtype == torch.float64 else model


def build_architecture(name, dtype=torch.float64):
    """A random model of one of the architectures."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().to(dtype).eval()
    return norm_in_its_own_precision(model) if dtype == torch.float64 else model


def build_byte_tokenizer(*, chat_template=None, closes_texts=False, **special):
    """A tokenizer of single bytes that starts every text with `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<|user|>", "<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = " </s>" if closes_texts else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>"} | special
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<|user|>", "<|end|>"], **special
    )
    fast.chat_template = chat_template
    return fast
