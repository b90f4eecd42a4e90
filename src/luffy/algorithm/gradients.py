"""How fast a token is learned: the derivative of the shaped ratio with respect to the token's log-prob, rho * f'(rho).

Closed forms on plain numbers, for those who show or plan and need neither tensors nor autograd; the loss itself
differentiates `luffy.algorithm.shaping`, and a test holds the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def gradient_weight(shaping: str, ratio: float, *, gamma: float = 0.1, exponent: float = 0.5) -> float:
    """What a trace token's advantage is multiplied by in the gradient: d f(rho) / d log p = rho * f'(rho).

    shaping: a name in `SHAPINGS`. ratio: rho >= 0; with pi_phi = 1 it is the policy's probability of the token.
    `none` rho; `regularized` gamma rho / (rho + gamma)^2; `sqrt` sqrt(rho) / 2; `power` e rho^e; `log` 1.
    Source: LUFFY, arXiv 2504.14945, policy shaping. Raises ValueError for an unknown name or a negative ratio.
    """
    if ratio < 0:
        raise ValueError(f"ratio is {ratio}; it must not be negative")
    forms: dict[str, Callable[[], float]] = {
        "none": lambda: ratio,
        "regularized": lambda: gamma * ratio / (ratio + gamma) ** 2,
        "sqrt": lambda: math.sqrt(ratio) / 2,
        "power": lambda: exponent * math.pow(ratio, exponent),
        "log": lambda: 1.0,
    }
    if shaping not in forms:
        raise ValueError(f"unknown shaping {shaping!r}; known: {', '.join(forms)}")
    return forms[shaping]()
