"""The policy: load a model, score tokens, cut rows into micro-batches."""

from luffy.model_folder import model_folder
from luffy.policy.attention import AttentionPlan, no_mask, plan_attention
from luffy.policy.batching import (
    MicroBatch,
    PaddedRows,
    deal_rows,
    pad_rows,
    padding_fraction,
    split_packed,
    split_padded,
)
from luffy.policy.load import (
    LoadedModel,
    check_context,
    context_of,
    extend_context,
    load_model,
    load_tokenizer,
    pick_device,
)
from luffy.policy.logprobs import Loss, TokenScores, output_head, score_hidden_states
from luffy.policy.packing import PackedRows, pack_rows
from luffy.policy.precision import pick_autocast
from luffy.policy.scorer import Scorer

__all__ = [
    "AttentionPlan",
    "LoadedModel",
    "Loss",
    "MicroBatch",
    "PackedRows",
    "PaddedRows",
    "Scorer",
    "TokenScores",
    "check_context",
    "context_of",
    "deal_rows",
    "extend_context",
    "load_model",
    "load_tokenizer",
    "model_folder",
    "no_mask",
    "output_head",
    "pack_rows",
    "pad_rows",
    "padding_fraction",
    "pick_autocast",
    "pick_device",
    "plan_attention",
    "score_hidden_states",
    "split_packed",
    "split_padded",
]
