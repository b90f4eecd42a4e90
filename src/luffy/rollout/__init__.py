"""Rollout engines: prompts in, completions out, behind one protocol.

An engine is imported when it is asked for: what only reads results needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from luffy.rollout.engine import Engine, Sampling

if TYPE_CHECKING:
    from luffy.rollout.transformers_engine import TransformersEngine, draw_tokens, keep_nucleus

_OF_TRANSFORMERS = ("TransformersEngine", "draw_tokens", "keep_nucleus")

__all__ = ["Engine", "Sampling", "TransformersEngine", "draw_tokens", "keep_nucleus"]


def __getattr__(name: str) -> Any:
    if name in _OF_TRANSFORMERS:
        return getattr(import_module("luffy.rollout.transformers_engine"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
