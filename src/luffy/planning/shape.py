"""The sizes of a model, from its config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luffy.errors import ModelError, first_line
from luffy.model_folder import is_cached, model_folder, read_model_config

# The models of the recipes, so that a plan needs neither the hub nor a download. Compared with torchtune's builders:
# https://github.com/pytorch/torchtune/blob/main/torchtune/models/qwen2_5/_model_builders.py (0.5B, 1.5B, 7B) and
# https://github.com/pytorch/torchtune/blob/main/torchtune/models/llama3_1/_model_builders.py (8B). The cards of
# Qwen2.5-Math-1.5B and 7B name Qwen2.5-1.5B and 7B as their base; their own config.json were not at hand.
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-Math-7B": {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "tie_word_embeddings": False},
    "Qwen/Qwen2.5-Math-1.5B": {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True},
    "Qwen/Qwen2.5-0.5B-Instruct": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True},
    "meta-llama/Llama-3.1-8B": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False},
}  # fmt: skip
KNOWN["Qwen/Qwen2.5-7B-Instruct"] = KNOWN["Qwen/Qwen2.5-Math-7B"]
KNOWN["Qwen/Qwen2.5-1.5B-Instruct"] = KNOWN["Qwen/Qwen2.5-Math-1.5B"]
KNOWN["meta-llama/Llama-3.1-8B-Instruct"] = KNOWN["meta-llama/Llama-3.1-8B"]

LEAN = ("llama", "mistral", "qwen2", "qwen3")  # model types that decode in few calls on a CPU (rollout/lean.py)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer within a decoder layer."""

    name: str  # as its module is called
    reads: str  # what it multiplies; some read the same
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of equal layers."""

    width: int
    inner: int  # of the feed-forward part
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied: bool  # whether embedding and head are one matrix
    gated: bool = True  # a feed-forward part of three matrices and RMS norms; else two matrices and GPT-2's norms
    biases: bool = False  # on queries, keys and values
    positions: int = 0  # learned ones
    lean: bool = False  # whether a CPU decodes it in few calls

    @property
    def attention_width(self) -> int:
        """Of the queries of all heads."""
        return self.heads * self.head_width

    @property
    def key_value_width(self) -> int:
        """Of the keys of all heads."""
        return self.key_value_heads * self.head_width

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The linear layers of one layer."""
        width, inner, attention, keys = self.width, self.inner, self.attention_width, self.key_value_width
        if not self.gated:
            return (
                Matrix("c_attn", "first norm", width, attention + 2 * keys),
                Matrix("c_proj", "attention", attention, width),
                Matrix("c_fc", "second norm", width, inner),
                Matrix("c_proj", "product", inner, width),
            )
        return (
            Matrix("q_proj", "first norm", width, attention),
            Matrix("k_proj", "first norm", width, keys),
            Matrix("v_proj", "first norm", width, keys),
            Matrix("o_proj", "attention", attention, width),
            Matrix("gate_proj", "second norm", width, inner),
            Matrix("up_proj", "second norm", width, inner),
            Matrix("down_proj", "product", inner, width),
        )

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        attention = 2 * self.width * (self.attention_width + self.key_value_width)
        if not self.gated:  # GPT-2: every matrix and norm has a bias
            return attention + 2 * self.width * self.inner + 9 * self.width + self.inner
        bias = (self.attention_width + 2 * self.key_value_width) if self.biases else 0
        return attention + bias + 3 * self.width * self.inner + 2 * self.width

    @property
    def head_parameters(self) -> int:
        """Of the output matrix."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All, tied ones once."""
        last_norm = self.width * (1 if self.gated else 2)
        embeddings = self.head_parameters * (1 if self.tied else 2) + self.positions * self.width
        return embeddings + self.layers * self.layer_parameters + last_norm


def read_shape(model: str) -> ModelShape:
    """The shape of a model: a folder, a built-in name, one of the recipes' models, or a hub name.

    Raises ModelError where its config.json cannot be read or names no sizes.
    """
    return shape_of(_read(model), model)


def shape_of(config: Mapping[str, Any], name: str = "model") -> ModelShape:
    """The shape that a config.json describes. Raises ModelError."""
    config = config.get("text_config", config)
    try:
        if config.get("model_type") == "gpt2":
            width = config["n_embd"]
            return ModelShape(
                width, config.get("n_inner") or 4 * width, config["n_layer"], config["n_head"], config["n_head"],
                width // config["n_head"], config["vocab_size"], config.get("tie_word_embeddings", True),
                gated=False, biases=True, positions=config["n_positions"],
            )  # fmt: skip
        heads = config["num_attention_heads"]
        return ModelShape(
            config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"], heads,
            config.get("num_key_value_heads") or heads, config.get("head_dim") or config["hidden_size"] // heads,
            config["vocab_size"], bool(config.get("tie_word_embeddings", False)),
            biases=config.get("model_type") == "qwen2" or bool(config.get("attention_bias")),
            lean=config.get("model_type") in LEAN,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ModelError(f"{name}: its config.json names no {error}, so its memory cannot be planned.") from None


def is_at_hand(model: str) -> bool:
    """Whether `read_shape` finds the model's sizes without asking the hub."""
    return model in KNOWN or _local(model).is_file() or is_cached(model)


def _local(model: str) -> Path:
    return Path(model_folder(model)).expanduser() / "config.json"


def _read(model: str) -> Mapping[str, Any]:
    file = _local(model)
    if not file.is_file():
        if model in KNOWN:
            return KNOWN[model]
        file = _from_hub(model)
    return read_model_config(file)


def _from_hub(model: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    except Exception as error:  # the client raises many kinds for what is not there or not reached
        raise ModelError(f"{model}: its config.json is neither here nor on the hub. {first_line(error)}") from None
