"""Rollout engines: prompts in, completions out, behind one protocol.

An engine is imported when it is asked for: what only reads results needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from luffy.rollout.engine import Engine, Sampling, StreamingEngine, stream

if TYPE_CHECKING:
    from luffy.rollout.sampling import draw_tokens, keep_nucleus
    from luffy.rollout.transformers_engine import TransformersEngine

_HOMES = {"TransformersEngine": "transformers_engine", "draw_tokens": "sampling", "keep_nucleus": "sampling"}

__all__ = ["Engine", "Sampling", "StreamingEngine", "TransformersEngine", "draw_tokens", "keep_nucleus", "stream"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"luffy.rollout.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
