"""The keys of a recipe as dotted names: listed, compared, guessed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from luffy.config.recipe import Config

MOST_SHOWN = 6  # keys that a message names

# What may differ between the starts of one run: it does not change what the steps before it computed.
FREE_KEYS = (
    "rollout.vllm.",
    "output",
    "steps",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best_checkpoints",
    "rollouts_every",
    "evaluation.",
    "methods",
    "tracker",
    "processes",
    "parallel.",
)


def flatten(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """The configuration as dotted keys and plain values."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return flat


def differing_keys(before: Config, now: Config) -> list[str]:
    """The keys in which two configurations of one run folder differ, without those that may."""
    old, new = flatten(before), flatten(now)
    return [key for key in new if new[key] != old[key] and not key.startswith(FREE_KEYS)]


def shown_as_differing(keys: Sequence[str]) -> str:
    """`a, b and 3 more differ`, for a message about configurations that differ in these keys."""
    more = f" and {len(keys) - MOST_SHOWN} more" if len(keys) > MOST_SHOWN else ""
    return f"{', '.join(keys[:MOST_SHOWN])}{more} {'differs' if len(keys) == 1 else 'differ'}"


def describe() -> list[tuple[str, str, str]]:
    """Every key with its default and its one-sentence explanation, in the order of the schema."""
    return list(_describe(Config, ""))


def _describe(section: type[BaseModel], prefix: str) -> Iterable[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _describe(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            text = "-" if default in (None, (), {}) else str(default)
            yield f"{prefix}{name}", text, field.description or ""


def known_keys() -> list[str]:
    """All dotted keys."""
    return [key for key, _, _ in describe()]
