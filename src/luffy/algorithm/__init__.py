"""The paper: every equation under its name, as pure functions on tensors."""

from typing import TYPE_CHECKING, Any

from luffy.algorithm.gradients import gradient_weight
from luffy.algorithm.methods import METHODS, Baseline, Method, Phase, TraceRole

if TYPE_CHECKING:
    from luffy.algorithm.advantages import group_advantages
    from luffy.algorithm.loss import (
        policy_loss,
        supervised_loss,
        surrogate,
        token_weights,
        truncated_importance_weights,
    )
    from luffy.algorithm.shaping import SHAPINGS

_LATE = {
    "SHAPINGS": "shaping",
    "group_advantages": "advantages",
    "policy_loss": "loss",
    "supervised_loss": "loss",
    "surrogate": "loss",
    "token_weights": "loss",
    "truncated_importance_weights": "loss",
}

__all__ = [
    "METHODS",
    "SHAPINGS",
    "Baseline",
    "Method",
    "Phase",
    "TraceRole",
    "gradient_weight",
    "group_advantages",
    "policy_loss",
    "supervised_loss",
    "surrogate",
    "token_weights",
    "truncated_importance_weights",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        from importlib import import_module

        return getattr(import_module(f"luffy.algorithm.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
