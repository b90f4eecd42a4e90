import math

import pytest
import torch

from luffy.algorithm import SHAPINGS
from luffy.algorithm.shaping import shape_log_ratio


def gradient_in_logprob(name, ratio, **constants):
    """rho * f'(rho), by automatic differentiation."""
    logprob = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    shape_log_ratio(name, logprob, **constants).backward()
    return logprob.grad.item()


def test_values_by_hand():
    ratio = torch.tensor([0.1, 0.4, 1.0], dtype=torch.float64)
    assert SHAPINGS["none"](ratio).tolist() == [0.1, 0.4, 1.0]
    assert SHAPINGS["regularized"](ratio, gamma=0.1).tolist() == pytest.approx([0.5, 0.8, 10 / 11])
    assert SHAPINGS["sqrt"](torch.tensor([0.25, 4.0])).tolist() == [0.5, 2.0]
    assert SHAPINGS["power"](torch.tensor([0.25, 4.0]), exponent=2.0).tolist() == [0.0625, 16.0]
    assert SHAPINGS["log"](ratio).tolist() == pytest.approx([-2.302585093, -0.9162907319, 0.0])


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("none", lambda rho: rho),
        ("regularized", lambda rho: 0.1 * rho / (rho + 0.1) ** 2),
        ("sqrt", lambda rho: math.sqrt(rho) / 2),
        ("power", lambda rho: 0.7 * rho**0.7),
        ("log", lambda rho: 1.0),
    ],
)
@pytest.mark.parametrize("ratio", [1e-6, 0.03, 0.1, 0.9, 1.0, 3.0])
def test_gradients_by_formula(name, formula, ratio):
    assert gradient_in_logprob(name, ratio, exponent=0.7) == pytest.approx(formula(ratio), rel=1e-9)


def test_shaping_learns_fastest_at_gamma_and_like_the_plain_ratio_at_one_point():
    ratios = [10 ** (exponent / 50) for exponent in range(-200, 1)]
    gradients = [gradient_in_logprob("regularized", ratio) for ratio in ratios]
    assert max(gradients) == pytest.approx(0.25)
    assert ratios[gradients.index(max(gradients))] == pytest.approx(0.1)
    equal = math.sqrt(0.1) - 0.1
    assert equal == pytest.approx(0.216, abs=1e-3)
    assert gradient_in_logprob("regularized", equal) == pytest.approx(equal)


@pytest.mark.parametrize("name", SHAPINGS)
@pytest.mark.parametrize("logprob", [-1e4, -200.0, -104.0, -80.0, -1e-7, 0.0, 50.0, 1e4])
def test_finite_everywhere_in_float32(name, logprob):
    value = torch.tensor(logprob, requires_grad=True)
    shaped = shape_log_ratio(name, value)
    shaped.backward()
    assert math.isfinite(shaped.item())
    assert math.isfinite(value.grad.item())


def test_log_teaches_even_the_unlikeliest_token():
    value = torch.tensor(-500.0, requires_grad=True)
    shape_log_ratio("log", value).backward()
    assert value.grad.item() == 1


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="regularized"):
        shape_log_ratio("regularised", torch.zeros(1))
