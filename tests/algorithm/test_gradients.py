"""The closed forms against what autograd makes of the functions that the loss uses."""

import math

import pytest
import torch

from luffy.algorithm import SHAPINGS, gradient_weight
from luffy.algorithm.shaping import shape_log_ratio


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_the_weight_is_the_derivative_in_the_log_prob(shaping):
    constants = {"gamma": 0.3, "exponent": 0.7}
    log_ratio = torch.tensor([-9.0, -2.3, -1.0, -0.01, 0.0, 1.5], dtype=torch.float64, requires_grad=True)
    shape_log_ratio(shaping, log_ratio, **constants).sum().backward()
    found = [gradient_weight(shaping, math.exp(value), **constants) for value in log_ratio.tolist()]
    assert found == pytest.approx(log_ratio.grad.tolist(), rel=1e-12)


def test_numbers_one_can_check_by_hand():
    assert gradient_weight("regularized", 0.1) == pytest.approx(0.25)  # at rho = gamma, its largest
    assert gradient_weight("regularized", 1.0) == pytest.approx(0.1 / 1.21)
    even = math.sqrt(0.1) - 0.1
    assert gradient_weight("regularized", even) == pytest.approx(gradient_weight("none", even))
    assert gradient_weight("regularized", 0.0) == 0.0


def test_what_is_no_shaping_is_refused():
    with pytest.raises(ValueError, match="unknown shaping 'square'; known: none, regularized"):
        gradient_weight("square", 0.5)
    with pytest.raises(ValueError, match="must not be negative"):
        gradient_weight("none", -0.1)
