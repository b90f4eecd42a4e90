"""Rollout engines: prompts in, completions out, behind one protocol."""

from luffy.rollout.engine import Engine, Sampling
from luffy.rollout.transformers_engine import TransformersEngine, draw_tokens, keep_nucleus

__all__ = ["Engine", "Sampling", "TransformersEngine", "draw_tokens", "keep_nucleus"]
