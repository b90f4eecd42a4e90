"""The policy: load a model, score tokens, cut rows into micro-batches."""

from luffy.policy.batching import PaddedRows, pad_rows, padding_fraction, split_by_budget
from luffy.policy.load import (
    LoadedModel,
    check_context,
    context_of,
    extend_context,
    load_model,
    load_tokenizer,
    model_folder,
    pick_device,
)
from luffy.policy.logprobs import Scorer, TokenScores, output_head, score_hidden_states

__all__ = [
    "LoadedModel",
    "PaddedRows",
    "Scorer",
    "TokenScores",
    "check_context",
    "context_of",
    "extend_context",
    "load_model",
    "load_tokenizer",
    "model_folder",
    "output_head",
    "pad_rows",
    "padding_fraction",
    "pick_device",
    "score_hidden_states",
    "split_by_budget",
]
