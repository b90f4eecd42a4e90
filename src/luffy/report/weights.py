"""How much each trace token pulls at the policy: the plain ratio's gradient next to the shaped one's, as a table.

The page looks weights up in it by a token's log-prob, so that every number on it is one of `luffy.algorithm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luffy.algorithm.gradients import gradient_weight
from luffy.algorithm.methods import METHODS
from luffy.comparison.collect import Comparison, Run, is_number

STEP = 0.05  # nats between two rows of the table
FIRST, LAST = -4.0, 16.0  # nats; above a ratio of 1 lie only tokens whose teacher's log-probs are known
DEFAULTS = {"gamma": 0.1, "exponent": 0.5}


def weight_table(comparison: Comparison) -> dict[str, Any]:
    """`{"first", "step", "gamma", "shaping", "plain": [rows], "shaped": [rows]}`; row k: rho = exp(-first - k * step).

    The shaping is that of the first method on the page whose traces join the group and are shaped, or the paper's.
    """
    shaping, constants = _shown(comparison)
    ratios = [math.exp(-FIRST - STEP * row) for row in range(round((LAST - FIRST) / STEP) + 1)]
    table = {
        name: [_rounded(gradient_weight(form, ratio, **constants)) for ratio in ratios]
        for name, form in (("plain", "none"), ("shaped", shaping))
    }
    gamma = constants["gamma"]
    even = math.sqrt(gamma) - gamma if shaping == "regularized" and gamma < 1 else None
    return {"first": FIRST, "step": STEP, "shaping": shaping, "even": even} | constants | table


def trace_roles(comparison: Comparison) -> dict[str, str]:
    """What the trace tokens of each method are multiplied by: `shaped`, `plain`, `supervised`, or `none`."""
    return {method: _role(runs[0]) for method, runs in comparison.methods.items()}


def _role(run: Run) -> str:
    method = METHODS.get(str(run.config.get("method") or run.method))
    if method is None:
        return "none"
    if method.traces == "group":
        return "plain" if _shaping(run) == "none" else "shaped"
    return "supervised" if method.learns_from_traces else "none"


def _shaping(run: Run) -> str:
    method = METHODS.get(str(run.config.get("method") or run.method))
    return str(_objective(run).get("shaping") or (method.shaping if method else "none"))


def _objective(run: Run) -> Mapping[str, Any]:
    objective = run.config.get("objective")
    return objective if isinstance(objective, Mapping) else {}


def _shown(comparison: Comparison) -> tuple[str, dict[str, float]]:
    for run in comparison.runs:
        if _role(run) == "shaped":
            given = {name: _objective(run).get(name) for name in DEFAULTS}
            return _shaping(run), DEFAULTS | {name: float(value) for name, value in given.items() if is_number(value)}
    return "regularized", dict(DEFAULTS)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
