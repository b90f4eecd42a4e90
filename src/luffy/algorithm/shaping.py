"""Policy shaping: functions f of the importance ratio that decide how fast a trace token is learned.

All take ratio [...], > 0, and return its shape. What matters is the gradient with respect to the token's log-prob,
rho * f'(rho), given with each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LOG_RATIO_RANGE = (-80.0, 20.0)  # where exp, its square and its inverse are finite in float32


def none(ratio: Tensor) -> Tensor:
    """The plain importance ratio, f(rho) = rho; gradient rho: likely tokens are learned fastest."""
    return ratio


def regularized(ratio: Tensor, *, gamma: float = 0.1) -> Tensor:
    """LUFFY's policy shaping, f(rho) = rho / (rho + gamma); gradient gamma * rho / (rho + gamma)^2.

    Compared with the plain ratio the gradient is scaled by gamma / (rho + gamma)^2: up for tokens the policy finds
    unlikely, down for those it is sure of (equal at rho = sqrt(gamma) - gamma). It is largest, 1/4, at rho = gamma.
    Source: LUFFY, arXiv 2504.14945, Equation 6; gamma = 0.1 is the paper's.
    """
    return ratio / (ratio + gamma)


def sqrt(ratio: Tensor) -> Tensor:
    """The square root, f(rho) = sqrt(rho); gradient sqrt(rho) / 2. In the original code as `square_root`."""
    return torch.sqrt(ratio)


def power(ratio: Tensor, *, exponent: float = 0.5) -> Tensor:
    """A power, f(rho) = rho^exponent; gradient exponent * rho^exponent. In the original code as `pow`."""
    return torch.pow(ratio, exponent)


def log(ratio: Tensor) -> Tensor:
    """The logarithm, f(rho) = log(rho); gradient 1: every token alike, as in SFT. In the original code as `logp`."""
    return torch.log(ratio)


SHAPINGS: dict[str, Callable[..., Tensor]] = {
    "none": none,
    "regularized": regularized,
    "sqrt": sqrt,
    "power": power,
    "log": log,
}


def shape_log_ratio(name: str, log_ratio: Tensor, *, gamma: float = 0.1, exponent: float = 0.5) -> Tensor:
    """f(exp(log_ratio)) for the shaping of that name, finite in value and gradient for every finite log-ratio.

    log_ratio: [...]. Outside `LOG_RATIO_RANGE` the ratio is held at the end of the range, with gradient 0; `log` needs
    no ratio and is exact everywhere. Raises ValueError for an unknown name.
    """
    if name not in SHAPINGS:
        raise ValueError(f"unknown shaping {name!r}; known: {', '.join(SHAPINGS)}")
    if name == "log":
        return log_ratio
    constants = {"regularized": {"gamma": gamma}, "power": {"exponent": exponent}}.get(name, {})
    return SHAPINGS[name](torch.exp(log_ratio.clamp(*LOG_RATIO_RANGE)), **constants)
