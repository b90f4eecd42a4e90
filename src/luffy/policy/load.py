"""Load a causal language model and its tokenizer from a local folder or a hub name.

What could run foreign code is refused before anything is read (see model_folder.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luffy.config import PolicyConfig
from luffy.errors import ModelError, first_line
from luffy.model_folder import check_model, model_folder
from luffy.policy.quantization import keep_gradients, loading_settings, release_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONTEXT = "max_position_embeddings"  # the libraries' name for the number of positions


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer and what ends a completion."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]  # any of these ends a completion
    pad_id: int  # fills up batches; masks are made from lengths, so it may equal an eos id


def load_model(name: str, policy: PolicyConfig, *, quantize: str | None = None) -> LoadedModel:
    """Load weights and tokenizer, ready to generate (evaluation mode, no dropout in any mode).

    quantize: how the linear layers of the blocks are packed while they are read (see policy/quantization.py).
    Raises ModelError naming the folder and what is missing or refused.
    """
    folder = model_folder(name)
    check_model(name, policy)
    device = pick_device(policy.device)
    tokenizer = load_tokenizer(name, trust_remote_code=policy.trust_remote_code)
    _refuse_endless(tokenizer, name)
    model = _load_weights(folder, name, policy, loading_settings(quantize, getattr(torch, policy.dtype), device))
    model = model.eval() if quantize else model.to(device).eval()
    disable_dropout(model)
    keep_gradients(model)
    release_file(model)
    if policy.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    eos_ids = _eos_ids(model, tokenizer)
    return LoadedModel(model, tokenizer, eos_ids, _pad_id(model, tokenizer, eos_ids, name))


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone. Raises ModelError when the folder holds none."""
    from transformers import AutoTokenizer

    folder = model_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the library raises many kinds, down to KeyError, for a folder that is none
        raise ModelError(f"{name}: no tokenizer can be loaded from it. {first_line(error)}") from None
    return tokenizer


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout of the model to 0: what is learned from must be the policy that sampled.

    Gradient checkpointing works in training mode alone, which would switch dropout on. The configuration is left as it
    is, so that the trained model is saved with the dropout it came with.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU. Raises ModelError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"policy.device={name} cannot be used: {first_line(error)}") from None
    if device.type == "cpu":  # else DeepSpeed, which accelerate loads where it is installed, says so on stdout
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return device


def _load_weights(folder: str, name: str, policy: PolicyConfig, settings: dict[str, Any]) -> PreTrainedModel:
    """The model with all its weights from the folder. Raises ModelError."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=policy.trust_remote_code)
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=extend_context(config, name, policy),
            dtype=getattr(torch, policy.dtype),
            use_safetensors=None if policy.allow_pickle else True,
            trust_remote_code=policy.trust_remote_code,
            output_loading_info=True,
            **settings,
        )
    except ModelError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, RuntimeError for other shapes, ...
        raise ModelError(f"{name}: cannot be loaded as a causal language model. {first_line(error)}") from None
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"{name}: {len(missing)} weights of {type(model).__name__} are not in its files, {missing[0]} for one. "
            "It is incomplete, or not a causal language model."
        )
    loaded: PreTrainedModel = model
    return loaded


def extend_context(config: PreTrainedConfig, name: str, policy: PolicyConfig) -> PreTrainedConfig:
    """The model's configuration with the context that `policy` gives it; a trained model is saved with it.

    Raises ModelError for a model whose configuration has no such thing.
    """
    if policy.context_length is not None:
        if not hasattr(config, CONTEXT):
            raise ModelError(f"{name}: policy.context_length cannot be set, its config.json has no {CONTEXT}.")
        config.max_position_embeddings = policy.context_length
    if policy.rope_theta is not None:
        rotary = getattr(config, "rope_parameters", None) or {}
        if "rope_theta" not in rotary:
            raise ModelError(f"{name}: policy.rope_theta cannot be set, its config.json has no single rope_theta.")
        config.rope_parameters = {**rotary, "rope_theta": policy.rope_theta}
    return config


def context_of(model: PreTrainedModel) -> int | None:
    """The positions that the model was made for; None: it does not say."""
    return getattr(model.config, CONTEXT, None)


def check_context(model: PreTrainedModel, prompt_tokens: int, completion_tokens: int) -> None:
    """Refuse to go beyond the positions that the model was made for: what it writes there is noise, or an index error.

    Both numbers are the longest there may be. Raises ModelError with the remedies.
    """
    context = context_of(model)
    needed = prompt_tokens + completion_tokens
    if context is not None and needed > context:
        raise ModelError(
            f"the model reads {context} tokens, but the longest prompt ({prompt_tokens}) and rollout.max_tokens "
            f"({completion_tokens}) make {needed}. Lower rollout.max_tokens, or extend the context: "
            f"policy.context_length={needed}, with a larger policy.rope_theta."
        )


def _refuse_endless(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{name}: the tokenizer has no end-of-sequence token, so a completion could never end. "
            "Set eos_token in its tokenizer_config.json."
        )


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends a completion: the tokenizer's token first (it is appended to traces), then the model's own."""
    of_model = getattr(model.generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return tuple(dict.fromkeys(int(token) for token in ids if token is not None))


def _pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...], name: str) -> int:
    """What fills up batches: the tokenizer's token if the model has an embedding for it.

    A pad token that was added to the tokenizer alone is common and harmless, since padding is masked; any other token
    without an embedding would fail in the middle of a run. Raises ModelError for such a token.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        beyond = [one for one, number in tokenizer.get_vocab().items() if number >= rows and one != tokenizer.pad_token]
        if beyond:
            raise ModelError(
                f"{name}: the tokenizer has tokens for which the model has no embedding ({rows} rows), "
                f"{beyond[0]!r} for one. They do not belong together, or the model was not resized."
            )
    pad = tokenizer.pad_token_id
    return int(pad) if pad is not None and pad < rows else eos_ids[0]
